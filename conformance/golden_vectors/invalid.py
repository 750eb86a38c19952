"""Golden vectors of what a port must refuse, and of what is not finite and must never become finite.

Clauses: SINK-2, SINK-9, MIX-6, MIX-11, GRAD-8, GRAD-9.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.agreement import INPUTS
from conformance.golden_vectors.adapters import adapter_inputs, seeded
from conformance.golden_vectors.cases import Case, seed_of, words
from conformance.strategies import Adapter, Logits

Array = NDArray[Any]
NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
PARAMETERS = INPUTS[1:]


def invalid_projections() -> Iterator[Case]:
    """Logits, or a cotangent, that are not finite; K = 0; a cotangent of another shape."""
    logits = Logits("normal", 1.0, 3, (), seed_of("invalid projections"))
    good, drawn = logits.values, words(logits)
    for text, value in NOT_FINITE.items():
        bad, at = _spoilt(good, value), f"{text} in {{}} at (1, 2)"
        inputs, why = {"mix_logits": bad, "cotangent": good}, f"a logit is {text}"
        yield from _refused(text, "sinkhorn_projection", inputs, f"{drawn}, {at.format('it')}", why, "SINK-9")
        inputs, where = {"mix_logits": good, "cotangent": bad}, f"{drawn}, {at.format('the cotangent')}"
        results = {"grad_mix_logits": "all"}
        name = f"{text} in a cotangent of the projection"
        yield Case(name, "sinkhorn_projection_vjp", ("GRAD-8",), where, 20, inputs, not_finite=results)
    inputs = {"mix_logits": good, "cotangent": good}
    yield from _refused("K=0", "sinkhorn_projection", inputs, drawn, "K is below 1", "SINK-2", 0)
    for shape in ((1, 3, 3), (3, 1), (2, 2)):
        inputs = {"mix_logits": good, "cotangent": np.ones(shape, np.float32)}
        why = f"the cotangent has the shape {shape}, the result (3, 3)"
        yield Case(why, "sinkhorn_projection_vjp", ("GRAD-9",), drawn, 20, inputs, refuse=why)


def invalid_adapters(adapter: Adapter) -> Iterator[Case]:
    """A basis of zeros, parameters or tokens or cotangents that are not finite, cotangents of another shape."""
    adapter = seeded(adapter, seed_of("invalid adapters"))
    drawn, operation = words(adapter), "adapter_forward"
    good = {**adapter_inputs(adapter), "cotangent": adapter.cotangent}
    inputs = {**good, "basis": np.zeros_like(adapter.basis)}
    yield from _refused("a basis of zeros", operation, inputs, drawn, "the basis is zero", "MIX-6")
    for key in PARAMETERS:
        inputs = {**good, key: _spoilt(good[key], np.nan)}
        yield from _refused(f"NaN in {key}", operation, inputs, drawn, f"{key} holds a NaN", "MIX-11")
    yield from _refused("K=0 of an adapter", operation, good, drawn, "K is below 1", "SINK-2", 0)
    for shape in ((1, *adapter.x.shape), (1, adapter.x.shape[-1])):
        inputs = {**good, "cotangent": np.ones(shape, np.float32)}
        why = f"the cotangent has the shape {shape}, y {adapter.x.shape}"
        yield Case(why, "adapter_vjp", ("GRAD-9",), drawn, 20, inputs, refuse=why)
    parameters = {f"grad_{key}": "some" for key in PARAMETERS}
    for text, value in NOT_FINITE.items():
        inputs, name = {**good, "x": _spoilt(good["x"], value)}, f"{text} in x"
        without = {key: array for key, array in inputs.items() if key != "cotangent"}
        yield Case(name, operation, ("MIX-11",), drawn, 20, without, not_finite={"y": "some"})
        yield Case(f"{name}, gradient", "adapter_vjp", ("GRAD-8",), drawn, 20, inputs, not_finite=parameters)
        inputs, name = {**good, "cotangent": _spoilt(good["cotangent"], value)}, f"{text} in a cotangent of the adapter"
        yield Case(name, "adapter_vjp", ("GRAD-8",), drawn, 20, inputs, not_finite=parameters | {"grad_x": "some"})


def _refused(
    name: str, operation: str, inputs: dict[str, Array], drawn: str, why: str, clause: str, iterations: int = 20
) -> Iterator[Case]:
    """Of the forward function, and of its VJP (GRAD-9)."""
    vjp = {"sinkhorn_projection": "sinkhorn_projection_vjp", "adapter_forward": "adapter_vjp"}[operation]
    or_nan = True if iterations else None
    forward = {key: array for key, array in inputs.items() if key != "cotangent"}
    yield Case(f"refuse {name}", operation, (clause,), drawn, iterations, forward, refuse=why, or_nan=or_nan)
    yield Case(f"refuse {name}, gradient", vjp, ("GRAD-9",), drawn, iterations, inputs, refuse=why, or_nan=or_nan)


def _spoilt(array: Array, value: float) -> Array:
    """A copy with ``value`` in row 1, column 2, or in place of a single number."""
    copy = array.copy()
    copy[(1, 2) if copy.ndim == 2 else ...] = value
    return copy
