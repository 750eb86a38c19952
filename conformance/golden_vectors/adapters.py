"""Golden vectors of the adapter and of its certificates. Clauses: VEC-3, VEC-4."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from conformance.agreement import (
    INPUTS,
    adapter_change,
    adapter_gradients,
    mixing_cotangent,
    parameters_of,
    settled_within,
)
from conformance.golden_vectors.cases import REFERENCE, Case, Output, Row, output, seed_of, settle, words
from conformance.strategies import Adapter
from conformance.tolerances import tolerance_for

Array = NDArray[Any]
CHANGE: Row = ("adapter y - x", "forward")
GRADIENTS = {name: f"grad_{name}" for name in INPUTS} | {"x": "grad_x_minus_cotangent"}
#: the table has no row for certificates, which are matrices of n r in float64: some 100 roundings of a QR and an SVD
CERTIFICATE_ATOL = 1e-12


def adapter_cases(name: str, adapter: Adapter, iterations: int = 20, gradients: bool = True) -> list[Case]:
    """y - x, and the four cotangents, of the same inputs."""
    wanted = 5 if gradients else 1
    return settle(lambda seed: _adapter(name, seeded(adapter, seed), iterations, gradients), name, wanted)


def seeded(adapter: Adapter, seed: int) -> Adapter:
    return replace(adapter, logits=replace(adapter.logits, seed=seed), seed=seed + 1)


def _adapter(name: str, adapter: Adapter, iterations: int, gradients: bool) -> list[Case]:
    inputs = adapter_inputs(adapter)
    trivial = adapter.logits.n == 1 or not adapter.x.size
    values = output("y_minus_x", adapter_change(REFERENCE, adapter, iterations), CHANGE, trivial)
    clauses: tuple[str, ...] = ("MIX-1", "MIX-2", "MIX-3", "MIX-5", "MIX-6")
    drawn = words(adapter)
    cases = [Case(name, "adapter_forward", clauses, drawn, iterations, inputs, values)] if values else []
    if not gradients:
        return cases
    values = {}
    for key, comparison in adapter_gradients(REFERENCE, adapter, iterations).items():
        values |= output(GRADIENTS[key], comparison, (f"adapter {key}", "gradient"), trivial)
    cotangent = mixing_cotangent(adapter, iterations)
    within = 4e-6 * adapter.logits.condition * np.abs(cotangent).max()
    if not settled_within(adapter.logits, cotangent, iterations, within).all():
        values.pop("grad_mix_logits", None)
    inputs = {**inputs, "cotangent": adapter.cotangent}
    clauses = ("GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7")
    return [*cases, Case(f"{name}, gradient", "adapter_vjp", clauses, drawn, iterations, inputs, values)]


def adapter_inputs(adapter: Adapter) -> dict[str, Array]:
    parts = (adapter.x, adapter.mix_logits, adapter.gate_logit, adapter.basis)
    return dict(zip(INPUTS, parts, strict=True))


def _parameters(adapter: Adapter) -> dict[str, Array]:
    return {key: value for key, value in adapter_inputs(adapter).items() if key != "x"}


def half_precision_case(dtype: str, adapter: Adapter) -> Case:
    """x in 16 bits; y as the reference has it before the one rounding to the dtype of x."""
    name = f"x in {dtype}"
    adapter = seeded(adapter, seed_of(name))
    inputs = adapter_inputs(adapter)
    bits = (inputs["x"].view(np.uint32) >> 16).astype(np.uint16)
    inputs["x"] = inputs["x"].astype(np.float16) if dtype == "float16" else bits
    x = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else inputs["x"]
    y = reference.adapter_forward(x, parameters_of(adapter), 20)
    row = tolerance_for("adapter y", dtype, "forward")
    scale = adapter.logits.condition * float(np.linalg.norm(x.astype(np.float64), axis=-1).max())
    outputs = {"y": Output(y, "adapter y, forward", {dtype: (row.relative, row.atol * scale)})}
    return Case(name, "adapter_forward", ("MIX-10",), words(adapter), 20, inputs, outputs)


def spectrum_case(name: str, adapter: Adapter, iterations: int = 20) -> Case:
    adapter = seeded(adapter, seed_of(name))
    values = np.asarray(reference.adapter_spectrum(parameters_of(adapter), iterations))
    outputs = {"spectrum": _certificate(values, adapter.logits.condition)}
    clauses = ("CERT-1", "MIX-7")
    return Case(name, "adapter_spectrum", clauses, words(adapter), iterations, _parameters(adapter), outputs)


def displacement_case(name: str, adapter: Adapter, other: Adapter, iterations: int = 20) -> Case:
    first, second = seeded(adapter, seed_of(name)), seeded(other, seed_of(name, 1))
    values = np.asarray(reference.displacement(parameters_of(first), parameters_of(second), iterations))
    condition = max(first.logits.condition, second.logits.condition)
    inputs = _parameters(first) | {f"other_{key}": value for key, value in _parameters(second).items()}
    outputs = {"displacement": _certificate(values, condition)}
    return Case(
        name, "displacement", ("CERT-2",), f"{words(first)}; other: {words(second)}", iterations, inputs, outputs
    )


def _certificate(values: Array, condition: float) -> Output:
    """A port without certificates measures its own dense map, column by column: its bound is that of y - x."""
    single = tolerance_for(CHANGE[0], "float32", CHANGE[1])
    bounds = {"float32": (single.relative, single.atol * condition), "float64": (0.0, CERTIFICATE_ATOL * condition)}
    return Output(values, "certificates, forward", bounds)
