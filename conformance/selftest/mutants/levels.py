"""Faults at one level of one axis of the covering design: right everywhere but for n = 24, K = 7, Fortran order, ...

Each is made by a factory from a condition on the arguments. It is tried on the layouts that have the level alone: the
full profile has them all.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from backends.interface import Gradients
from conformance.design.axes import ADAPTER, class_of
from conformance.design.layouts import adapter_layouts, rows
from conformance.selftest.mutants.around import FORWARD, PROJECT, PULL_BACK, VJP, Around, X, first_gate
from conformance.selftest.mutants.base import Mutant
from conformance.selftest.port import Array


class Call(NamedTuple):
    """What a function is called with; the projection with S and K alone."""

    logits: Array
    iterations: int
    x: Any = None
    gate: float = 0.0
    basis: Any = None


Condition = Callable[[Call], bool]
Functions = tuple[str, ...]
NAMES: dict[Functions, str] = {
    PROJECT: "projection",
    PULL_BACK: "projection_vjp",
    FORWARD: "adapter",
    VJP: "adapter_vjp",
}


def _call_of(*arguments: Any) -> Call:
    if len(arguments) < 5:
        return Call(arguments[0], arguments[-1])
    x, logits, gate, basis = arguments[:4]
    return Call(logits, arguments[-1], x, float(first_gate(gate)), basis)


class WrongAt(Around):
    """Where ``condition`` holds a function is wrong: M is transposed, anything else is off by a little."""

    def __init__(self, condition: Condition, functions: Functions) -> None:
        super().__init__(functions)
        self.condition = condition

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        if not self.condition(_call_of(*arguments)):
            return result
        if function in PROJECT:
            return np.ascontiguousarray(np.swapaxes(result, -1, -2))
        if function in FORWARD:
            with np.errstate(all="ignore"):
                change = result.astype(np.float64) - arguments[X].astype(np.float64)
                return np.asarray(result - (0.1 * change).astype(result.dtype))
        return Gradients(result.x, *map(_off, result[1:])) if function in VJP else _off(result)


def _off(gradient: Array) -> Array:
    return np.asarray(gradient * gradient.dtype.type(0.98))


def _tokens(call: Call) -> int:
    return math.prod(call.x.shape[:-1]) if call.x is not None else math.prod(call.logits.shape[:-2])


def _is(of: Callable[[Call], Any], value: object) -> Condition:
    return lambda call: bool(of(call) == value)


def _lies(of: Callable[[Call], Any], holds: Callable[[Array], bool]) -> Condition:
    return lambda call: holds(of(call))


_LOGITS = [7, 10, 11, 13, 20, 23, 24, 29, 37, 40, 48, 50, 53, 63]
_ITERATIONS = [2, 6, 7, 13, 19, 30, 37, 45, 64, 90, 99, 100]
_RANKS = [3, 6, 7, 9, 11, 12, 17, 24, 32]
_GATES = [-104, -60, -25, -20, -16, -14, 14, 18, 20, 30, 60]
_SIZES = [512, 1023, 1024, 2048, 4096, 5120, 8192]
_MEMORY: dict[str, Callable[[Array], bool]] = {
    "Fortran": lambda array: array.flags.f_contiguous and not array.flags.c_contiguous,
    "strided": lambda array: array.size > 0 and array.ndim > 0 and array.strides[-1] == 2 * array.itemsize,
    "reversed": lambda array: array.size > 0 and array.ndim > 0 and array.strides[-1] < 0,
    "stride_0": lambda array: array.size > 0 and 0 in array.strides,
    "read-only": lambda array: not array.flags.writeable,
    "unaligned": lambda array: not array.flags.aligned,
}
#: level -> condition, and what of a layout's id says that it has the level
PROJECTION_LEVELS: dict[str, tuple[Condition, str]] = {
    **{f"n_is_{n:02}": (_is(lambda call: call.logits.shape[-1], n), f"n{n}-") for n in _LOGITS},
    **{f"k_is_{k:03}": (_is(lambda call: call.iterations, k), f"K{k}-") for k in _ITERATIONS},
    **{f"{name}_logits": (_lies(lambda call: call.logits, holds), f"-{name}]") for name, holds in _MEMORY.items()},
    "more_than_2048_matrices": (lambda call: _tokens(call) > 2048, "batch2050"),
    "more_than_4096_matrices": (lambda call: _tokens(call) > 4096, "batch4099"),
    "five_axes_of_matrices": (lambda call: call.logits.ndim == 7, "batch2x1x3x1x2"),
}
ADAPTER_LEVELS: dict[str, tuple[Condition, str]] = {
    **{f"n_is_{n:02}": (_is(lambda call: call.logits.shape[-1], n), f"n{n}-") for n in _LOGITS},
    **{f"rank_is_{r:02}": (_is(lambda call: call.basis.shape[1], r), f"r{r}-") for r in _RANKS},
    **{f"d_is_{d:04}": (_is(lambda call: call.basis.shape[2], d), f"d{d}-") for d in _SIZES},
    **{f"{name}_x": (_lies(lambda call: call.x, holds), f"{name}-") for name, holds in _MEMORY.items()},
    "d_over_4100": (lambda call: call.basis.shape[2] > 4100, "d8192"),
    "more_than_1024_tokens": (lambda call: _tokens(call) > 1024, "tokens1030"),
    "more_than_2048_tokens": (lambda call: _tokens(call) > 2048, "tokens2050"),
    "more_than_4096_tokens": (lambda call: _tokens(call) > 4096, "tokens4099"),
    "four_axes_of_tokens": (lambda call: call.x.ndim == 5, "tokens1x2x1x5"),
    "float16": (lambda call: call.x.dtype == np.float16, "-float16-"),
    "bfloat16": (lambda call: call.x.dtype.name == "bfloat16", "-bfloat16-"),
    "basis_of_norm_over_1000": (lambda call: float(np.abs(call.basis).max()) > 1000.0, "times_1000"),
    "repeated_rows": (
        lambda call: call.basis.shape[1] > 1 and np.array_equal(call.basis[0, 0], call.basis[0, 1]),
        "-repeated_rows]",
    ),
    "rows_of_zeros": (lambda call: not np.abs(call.basis).sum(axis=-1).all(), "zero_rows"),
}
GATE_LEVELS: dict[str, tuple[Condition, str]] = {
    f"gate_is_{'minus_' * (gate < 0)}{abs(gate)}": (_is(lambda call: call.gate, gate), f"{float(gate)}]")
    for gate in _GATES
    if abs(gate) < 87
}


def _has_streams_and_rank(streams: Sequence[int], rank: Sequence[int], call: Call) -> bool:
    return call.basis is not None and call.basis.shape[0] in streams and call.basis.shape[1] in rank


def _pairs() -> dict[str, tuple[Condition, str]]:
    """Faults where two levels meet: a third of the layouts that mix something, each with two of its classes."""
    found: dict[str, tuple[Condition, str]] = {}
    axes = {axis.name: axis for axis in ADAPTER}
    for layout, row in list(zip(adapter_layouts(), rows("adapter"), strict=True))[::9]:
        if layout.n == 1 or 0 in layout.leading or layout.memory == "stride 0":
            continue
        streams = axes["n"].classes[class_of(axes["n"], row["n"])]
        rank = axes["r"].classes[class_of(axes["r"], row["r"])]
        found[f"streams_and_rank_of_layout_{layout.number}_"] = (
            partial(_has_streams_and_rank, streams, rank),
            f"n{layout.n}-r{layout.rank}-",
        )
    return found


def _mutants(functions: Functions, test: str, levels: dict[str, tuple[Condition, str]]) -> list[Mutant]:
    return [
        Mutant(f"{NAMES[functions]}_where_{name}", partial(WrongAt, condition, functions), (test,), (), layouts=layouts)
        for name, (condition, layouts) in levels.items()
    ]


def _any_of(levels: dict[str, tuple[Condition, str]], call: Call) -> bool:
    return any(condition(call) for condition, _ in levels.values())


#: a port that is wrong at many levels at once, each of which another one could hide
COMPOUND: dict[str, tuple[Condition, str]] = {
    "any_level_": (partial(_any_of, {name: ADAPTER_LEVELS[name] for name in list(ADAPTER_LEVELS)[::2]}), ""),
}
MUTANTS = (
    *_mutants(FORWARD, "test_design::test_adapter", COMPOUND),
    *_mutants(VJP, "test_adapter_gradient", COMPOUND),
    *_mutants(PROJECT, "test_projection", PROJECTION_LEVELS),
    *_mutants(PULL_BACK, "test_projection_gradient", PROJECTION_LEVELS),
    *_mutants(FORWARD, "test_design::test_adapter", {**ADAPTER_LEVELS, **_pairs()}),
    *_mutants(VJP, "test_adapter_gradient", ADAPTER_LEVELS),
    *_mutants(VJP, "test_every_gate", GATE_LEVELS),
)
