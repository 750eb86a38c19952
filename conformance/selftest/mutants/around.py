"""Right ports with something done around the calls of some functions: what most mutants are made of.

``Given`` changes what a function is given and ``Returns`` what it returns; other faults derive from ``Around``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backends.interface import OPTIONAL, REQUIRED
from conformance.selftest.port import Array, NumpyPort

FUNCTIONS = tuple(name for name in (*REQUIRED, *OPTIONAL) if hasattr(NumpyPort, name))
PROJECT, PULL_BACK = ("sinkhorn_projection",), ("sinkhorn_projection_vjp",)
FORWARD, VJP = ("adapter_forward",), ("adapter_vjp",)
LOAD, SAVE = ("load_state",), ("save_state",)
X, LOGITS, GATE, BASIS, COTANGENT = range(5)  # places of the arguments of an adapter


class Around(NumpyPort):
    """Each call of ``functions`` goes through ``call``. What the port calls within itself does not.

    ``kept`` is for what a mutant has from its earlier calls.
    """

    def __init__(self, functions: tuple[str, ...] = FUNCTIONS) -> None:
        super().__init__()
        self.inner = NumpyPort()
        self.kept: dict[Any, Any] = {}
        for function in FUNCTIONS:
            right = getattr(self.inner, function)
            setattr(self, function, partial(self.call, function) if function in functions else right)

    def call(self, function: str, *arguments: Any) -> Any:
        return getattr(self.inner, function)(*arguments)


class Given(Around):
    """``functions`` are given ``change`` of their arguments."""

    def __init__(self, functions: tuple[str, ...], change: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__(functions)
        self.change = change

    def call(self, function: str, *arguments: Any) -> Any:
        return super().call(function, *self.change(*arguments))


class Returns(Around):
    """``functions`` return ``change`` of their result, which may look at the arguments too, and change these."""

    def __init__(self, functions: tuple[str, ...], change: Callable[..., Any]) -> None:
        super().__init__(functions)
        self.change = change

    def call(self, function: str, *arguments: Any) -> Any:
        return self.change(super().call(function, *arguments), *arguments)


def argument(place: int, change: Callable[[Any], Any]) -> Callable[..., tuple[Any, ...]]:
    """For :class:`Given`: one argument is changed, and the others are as they are."""
    return lambda *given: (*given[:place], change(given[place]), *given[place + 1 :])


def without_nan(array: Array) -> Array:
    """What is not finite becomes 0."""
    return np.nan_to_num(array, posinf=0, neginf=0)


def first_gate(gate: Array) -> Any:
    return np.ravel(gate)[0]


def cut_to_a_square(logits: Array) -> Array:
    n = min(logits.shape[-2:])
    return logits[..., :n, :n]


def each_array(change: Callable[[Array], Array], result: Any) -> Any:
    """``change`` of each array of a result; what holds none is handed on."""
    if isinstance(result, np.ndarray):
        return change(result)
    if isinstance(result, tuple):
        return type(result)(*(each_array(change, part) for part in result))
    return result


def arrays_of(arguments: tuple[Any, ...]) -> list[Array]:
    return [argument for argument in arguments if isinstance(argument, np.ndarray)]
