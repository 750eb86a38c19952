"""What a port is compared on: the reference's value, and the scale of one rounding error in it.

Clauses: ACC-1, ACC-3.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, reject
from numpy.typing import NDArray

import reference
from backends import Backend
from backends.interface import Gradients, dtype_named, x_dtypes
from conformance.compare import assert_close, assert_within, is_resolvable
from conformance.memory import laid_out
from conformance.strategies import Adapter, Logits
from conformance.tolerances import EPS, tolerance_for
from reference.adapter import adapter_strength, sigmoid
from reference.errors import PortResultError, PortStoppedError
from reference.residual_mixing import residual_mixing_vjp
from reference.sinkhorn_projection import kink_of_projection

Array = NDArray[Any]
INPUTS = Gradients._fields
HALF = ("float16", "bfloat16")
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}  # the smallest subnormal number
#: the clause of each gradient
CLAUSES = {"x": "GRAD-4", "mix_logits": "GRAD-1", "gate_logit": "GRAD-6", "basis": "GRAD-5"}


class Comparison(NamedTuple):
    """``actual`` of the port, ``expected`` of the reference, and the scale that multiplies the row's atol."""

    actual: Any
    expected: Any
    scale: Any


def inputs_of(backend: Backend, case: Adapter, x_dtype: str | None = None) -> tuple[Array, Array, Array, Array]:
    """x, S, gamma, A in the dtype that the port keeps its parameters in; x in ``x_dtype`` if there is one."""
    dtype = backend.parameter_dtype
    x = case.x.astype(dtype_named(x_dtype) if x_dtype else dtype)
    arrays = (x, case.mix_logits.astype(dtype), case.gate_logit.astype(dtype), case.basis.astype(dtype))
    return tuple(laid_out(array, case.memory) for array in arrays)  # type: ignore[return-value]


def cotangent_of(case: Adapter, x: Array) -> Array:
    """dL/dy in the dtype of ``x``, laid out as it."""
    return laid_out(case.cotangent.astype(x.dtype), case.memory)


def parameters_of(case: Adapter) -> reference.AdapterParameters:
    """The same parameters for the reference, in float64."""
    logits, gate, basis = (a.astype(np.float64) for a in (case.mix_logits, case.gate_logit, case.basis))
    return reference.AdapterParameters(logits, gate, basis)


def projection(backend: Backend, case: Logits, iterations: int) -> Comparison:
    """M. Scale: how much a rounding of S - max S matters."""
    logits = laid_out(case.values.astype(backend.parameter_dtype), case.memory)
    actual = backend.sinkhorn_projection(logits, iterations)
    return Comparison(actual, reference.sinkhorn_projection(case.values, iterations), case.condition)


def projection_gradient(backend: Backend, case: Logits, cotangent: Array, iterations: int) -> Comparison:
    """dL/dS. Scale: the same, times the largest cotangent."""
    logits, upstream = (laid_out(a.astype(backend.parameter_dtype), case.memory) for a in (case.values, cotangent))
    actual = backend.sinkhorn_projection_vjp(logits, upstream, iterations)
    expected = reference.sinkhorn_projection_vjp(case.values, cotangent, iterations)
    return Comparison(actual, expected, case.condition * np.abs(cotangent).max(initial=0.0))


def adapter_output(backend: Backend, case: Adapter, iterations: int, x: Any = None) -> Array:
    """y in float64; ``x`` replaces the case's own."""
    tokens, logits, gate, basis = inputs_of(backend, case)
    x = tokens if x is None else np.asarray(x, backend.parameter_dtype)
    return np.asarray(backend.adapter_forward(x, logits, gate, basis, iterations)).astype(np.float64)


def adapter_change(backend: Backend, case: Adapter, iterations: int, x_dtype: str | None = None) -> Comparison:
    """``y - x``, since y itself is close to x whatever a port does. Scale: ``||x||`` of each token.

    With an ``x_dtype`` of 16 bits y itself, which is rounded to it.
    """
    inputs = inputs_of(backend, case, x_dtype)
    x = inputs[0].astype(np.float64)
    identity = 0.0 if x_dtype in HALF else x
    actual = np.asarray(backend.adapter_forward(*inputs, iterations)).astype(np.float64) - identity
    expected = reference.adapter_forward(x, parameters_of(case), iterations) - identity
    scale = case.logits.condition * np.linalg.norm(x, axis=-1, keepdims=True)
    return Comparison(actual, expected, scale + _floor(backend, "adapter y - x", "forward", 1.0, x_dtype))


def adapter_gradients(
    backend: Backend, case: Adapter, iterations: int, x_dtype: str | None = None, function: str = "adapter_vjp"
) -> dict[str, Comparison]:
    """The four cotangents; for x without the identity's part. Scales: the largest value that each can have.

    With s = sigmoid(gamma), G = sum over tokens of ``||dL/dy|| ||x||``: x ``||dL/dy||``; S ``s G``;
    gamma ``s sigmoid(-gamma) G``; A ``s G / ||A||_2``; each times the condition of S. With ``x_dtype``, x and dL/dy
    are rounded to it first; where that has 16 bits, x's own cotangent is compared whole. What lies below the smallest
    normal number of the parameters' dtype may be taken as zero (note on range in spec/40).
    """
    inputs = inputs_of(backend, case, x_dtype)
    cotangent = cotangent_of(case, inputs[0])
    actual = getattr(backend, function)(*inputs, cotangent, iterations)
    x, upstream = inputs[0].astype(np.float64), cotangent.astype(np.float64)
    expected = reference.adapter_vjp(x, parameters_of(case), upstream, iterations)
    scales = gradient_scales(case, x, upstream)
    norm, total = case.basis_norm, _products(upstream, x)
    # What may be taken as zero: numbers of x and of the cotangent, their products, and s, s / kappa and s / kappa^2
    # where the gate is as good as closed. In units of the smallest normal number.
    tiny = float(np.finfo(backend.parameter_dtype).tiny)
    vanishes = sigmoid(case.gate) * sigmoid(-case.gate) < 100.0 * tiny * (1.0 + norm**2) ** 2
    small_x, small_upstream = (np.where(np.abs(array) < tiny, array, 0.0) for array in (x, upstream))
    dropped = _products(small_x, upstream) + _products(x, small_upstream)
    lost = 1.0 + x.size + dropped / tiny + (1.0 + norm**2 * vanishes) * total
    floors = {"x": 1.0, "basis": 1.0 + lost / norm, "mix_logits": lost, "gate_logit": lost}
    comparisons = {}
    for name in INPUTS:
        identity = upstream if name == "x" and x_dtype not in HALF else 0.0
        of = x_dtype if name == "x" else None
        found = np.asarray(getattr(actual, name)).astype(np.float64) - identity
        scale = scales[name] + _floor(backend, f"adapter {name}", "gradient", floors[name], of)
        comparisons[name] = Comparison(found, getattr(expected, name) - identity, scale)
    return comparisons


def _floor(backend: Backend, operation: str, direction: str, size: float, x_dtype: str | None) -> float:
    """What the smallest numbers add to a scale: a port may take what is below the normal ones, times ``size``, as zero.

    A result of 16 bits is also rounded to a multiple of its dtype's smallest number.
    """
    dtype = backend.parameter_dtype
    if x_dtype in HALF:
        row = tolerance_for("adapter y" if direction == "forward" else operation, x_dtype, direction)
        return float(8.0 * np.finfo(dtype).tiny * size + 0.51 * SMALLEST[str(x_dtype)]) / row.atol
    return float(8.0 * np.finfo(dtype).tiny * size) / tolerance_for(operation, dtype, direction).atol


def gradient_scales(case: Adapter, x: Any, upstream: Any) -> dict[str, Any]:
    """The scales of :func:`adapter_gradients`."""
    gate, closed = sigmoid(case.gate), sigmoid(-case.gate)
    condition, total = case.logits.condition, _products(upstream, x)
    return {
        "x": condition * np.linalg.norm(upstream, axis=-1, keepdims=True),
        "mix_logits": condition * gate * total,
        "gate_logit": condition * gate * closed * total,
        "basis": condition * gate * total / case.basis_norm,
    }


def _products(left: Array, right: Array) -> float:
    """The sum over tokens of the products of their norms."""
    return float((np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)).sum())


def mixing_cotangent(case: Adapter, iterations: int) -> Array:
    """The reference's dL/dM of an adapter: the cotangent that its Sinkhorn projection gets."""
    parameters = parameters_of(case)
    x, cotangent, basis = (array.astype(np.float64) for array in (case.x, case.cotangent, case.basis))
    mixing = reference.sinkhorn_projection(case.mix_logits, iterations)
    return residual_mixing_vjp(x, mixing, adapter_strength(parameters), basis, cotangent)[1]


def settled_within(case: Logits, cotangent: Array, iterations: int, within: Any, dtype: str = "float32") -> Array:
    """For each matrix whether dL/dS stays within ``within`` / 2 when it is computed with other roundings.

    M has kinks: where two row sums of P tie for the largest, the derivative depends on which comes first, and a
    float32 port may see another order than the reference. A tie is harmless where the iteration has converged. Exact
    ties have a test of their own.
    """
    gap, change = kink_of_projection(case.values, cotangent, iterations)
    rounding = 12.0 * np.sqrt(2 * iterations - 1) * EPS[dtype] * case.condition  # of a row sum after 2 K - 1 steps
    return np.asarray((gap > rounding) | (change <= within / 2))


def settled_matrices(backend: Backend, case: Logits, cotangent: Array, iterations: int) -> Array:
    """:func:`settled_within` the tolerance of the port's dL/dS."""
    row = tolerance_for("sinkhorn_projection", backend.parameter_dtype, "gradient")
    within = row.atol * case.condition * np.abs(cotangent).max(initial=0)
    return settled_within(case, cotangent, iterations, within, row.dtype)


def assume_settled(backend: Backend, case: Logits, cotangent: Array, iterations: int) -> None:
    """Draw another case where dL/dS sits on a kink: see :func:`settled_matrices`."""
    assume(settled_matrices(backend, case, cotangent, iterations).all())


def assert_agrees(comparison: Comparison, row: tuple[str, str], backend: Backend, clause: str, context: object) -> None:
    """Compare by the table's row. Where the reference's value lies below the tolerance, zeros would pass: the port's
    noise is still bounded there, but hypothesis does not count the example.
    """
    if not _agrees(comparison, (row[0], backend.parameter_dtype, row[1]), clause, context):
        reject()


def assert_agrees_if_resolvable(
    comparison: Comparison, row: tuple[str, Any, str], clause: str, context: object
) -> bool:
    """Compare by a row of the table (operation, dtype, direction), and say whether zeros would have failed."""
    return _agrees(comparison, row, clause, context) and bool(np.any(comparison.expected))


def _agrees(comparison: Comparison, row: tuple[str, Any, str], clause: str, context: object) -> bool:
    """Whether the comparison, which was made, was one that could fail clearly (ACC-2)."""
    tolerance = tolerance_for(*row)
    actual, expected, scale = comparison
    resolvable = is_resolvable(expected, tolerance, scale)
    compare = assert_close if resolvable else assert_within
    compare(actual, expected, tolerance, clause=clause, scale=scale, context=context)
    return resolvable


def assert_sums_to_one(backend: Backend, mixing: Any, clause: str, context: object, layers: int = 1) -> None:
    """Rows and columns of M, or of a product of ``layers`` of them. Clause: SINK-5."""
    tolerance = tolerance_for("row and column sums", backend.parameter_dtype, "forward")
    scale = layers * max(1, np.shape(mixing)[-1] / 16)
    for axis in (-1, -2):
        sums = np.asarray(mixing, np.longdouble).sum(axis=axis)
        assert_close(sums, np.ones(sums.shape), tolerance, clause=clause, scale=scale, context=(context, axis))


def assert_near(backend: Backend, actual: Any, expected: Any, clause: str, scale: Any, context: object) -> None:
    """Two results of the port's adapter, which only rounding may tell apart. Both are of the order of ``scale``."""
    tolerance = replace(tolerance_for("adapter y - x", backend.parameter_dtype, "forward"), ulps=0.0)
    expected = np.broadcast_to(expected, np.shape(actual))
    assert_within(actual, expected, tolerance, clause=clause, scale=scale, context=context)


def require_x_dtype(backend: Backend, name: str) -> None:
    """Skip the test of a dtype that the port does not say it takes for x. Clause: BACK-6."""
    if name not in x_dtypes(backend):
        pytest.skip(f"not offered: x in {name} (x_dtypes)")


def require(backend: Backend, function: str) -> None:
    """Skip the test of an optional function that the port does not have. Clause: BACK-6."""
    if not hasattr(backend, function):
        pytest.skip(f"not offered: {function}")


def fails(call: Callable[[], object]) -> bool:
    """Whether a port refuses; which exception is its own affair."""
    return fails_or(call, lambda _: False)


def fails_or_all_nan(call: Callable[[], Array]) -> bool:
    """What a port may do with values it cannot use: raise, or answer NaN throughout; never a finite value."""
    return fails_or(call, lambda result: bool(np.isnan(np.asarray(result)).all()))


def fails_or_nowhere_finite(call: Callable[[], Iterable[Array]]) -> bool:
    """Whether a port refuses, or none of the numbers of its results is finite."""
    return fails_or(call, lambda results: not any(np.isfinite(np.asarray(r).astype(float)).any() for r in results))


def fails_or(call: Callable[[], Any], holds: Callable[[Any], bool]) -> bool:
    """Whether a port refuses, or what it answers is as good as a refusal."""
    try:
        result = call()
    except (PortStoppedError, PortResultError):
        raise  # a program that died has refused nothing, nor has one that answers something else than an array
    except Exception:
        return True
    return holds(result)
