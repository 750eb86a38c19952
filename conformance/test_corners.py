"""Corners that random drawing seldom meets: degenerate bases, zeros, far magnitudes, what a port may not touch.

Clauses: MIX-2, MIX-6, GRAD-7, GRAD-8, SINK-2, BACK-3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

import reference
from conformance.agreement import (
    INPUTS,
    Comparison,
    adapter_change,
    adapter_gradients,
    assert_agrees,
    fails,
    inputs_of,
)
from conformance.strategies import BASES, Adapter, Logits

FORWARD = ("adapter y - x", "forward")
FAR = (-40, -20, 14, 40)


@dataclass(frozen=True)
class WithBasis(Adapter):
    """A case whose basis is made by one of ``BASES``."""

    kind: str = "orthonormal"

    @property
    def basis(self) -> np.ndarray:
        rng, n, d = np.random.default_rng(self.seed), self.logits.n, self.hidden_size
        rows = np.linalg.qr(rng.standard_normal((d, n * self.rank)))[0].T
        return np.asarray(BASES[self.kind](rng, rows), np.float32).reshape(n, self.rank, d)


def case_of(kind="", leading=(5,), seed=4):
    drawn = (Logits("normal", 0.5, 3, (), seed), 2, 3, leading, 1.0, 1.0, 1.0, True, seed)
    return WithBasis(*drawn, kind=kind) if kind else Adapter(*drawn)


def assert_everything_agrees(backend, case, clause):
    assert_agrees(adapter_change(backend, case, 20), FORWARD, backend, clause, case)
    for name, comparison in adapter_gradients(backend, case, 20).items():
        assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, "GRAD-7", (name, case))


@pytest.mark.clause("MIX-6", "GRAD-5", "GRAD-6", "GRAD-7")
@pytest.mark.parametrize("kind", BASES)
def test_any_basis_but_zero_is_legal(backend, kind):
    """Repeated rows, rows of zeros, rank one: kappa and its gradient exist wherever A is not zero throughout."""
    assert_everything_agrees(backend, case_of(kind), "MIX-6")


@pytest.mark.clause("MIX-2", "GRAD-4")
def test_a_token_of_zeros_stays_zero(backend):
    x, *parameters = inputs_of(backend, case_of())
    x[2] = 0
    y = np.asarray(backend.adapter_forward(x, *parameters, 20))
    gradients = backend.adapter_vjp(x, *parameters, x, 20)
    assert not y[2].any()
    assert not gradients.x[2].any()
    assert np.isfinite(y).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.clause("MIX-2", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-8")
@pytest.mark.parametrize(
    ("of_x", "of_cotangent"), [*((k, 0) for k in FAR), *((0, k) for k in FAR), (70, -40), (-40, 70)]
)
def test_linear_in_x_and_in_the_cotangent_at_any_magnitude(backend, of_x, of_cotangent):
    """Times 2^k, which no rounding sees: the results are those of k = 0, times 2^k. The square of 2^70 overflows."""
    x, *parameters = inputs_of(backend, case_of())
    cotangent = case_of(seed=5).x.astype(x.dtype)
    scaled = x * x.dtype.type(2.0**of_x), cotangent * x.dtype.type(2.0**of_cotangent)
    results = []
    for tokens, upstream in ((x, cotangent), scaled):
        gradients = backend.adapter_vjp(tokens, *parameters, upstream, 20)
        results.append([backend.adapter_forward(tokens, *parameters, 20), *gradients])
    for name, plain, large in zip(("y", *INPUTS), *results, strict=True):
        expected = np.float64(plain) * 2.0 ** {"y": of_x, "x": of_cotangent}.get(name, of_x + of_cotangent)
        size = float(np.abs(expected).max())
        comparison = Comparison(np.float64(large) / size, expected / size, 1.0)
        assert_agrees(comparison, FORWARD, backend, "GRAD-8", (name, of_x, of_cotangent))


@pytest.mark.clause("MIX-6", "GRAD-6")
@pytest.mark.parametrize("exponent", [-20, 20])
def test_gradient_of_the_basis_at_any_scale_of_it(backend, exponent):
    """y does not see the scale of A, so the gradient of c A is that of A, divided by c."""
    x, logits, gate, basis = inputs_of(backend, case_of())
    factor = basis.dtype.type(2.0**exponent)
    plain = backend.adapter_vjp(x, logits, gate, basis, x, 20)
    scaled = backend.adapter_vjp(x, logits, gate, basis * factor, x, 20)
    expected = np.float64(plain.basis) / float(factor)
    size = float(np.abs(expected).max())
    comparison = Comparison(np.float64(scaled.basis) / size, expected / size, 1.0)
    assert_agrees(comparison, FORWARD, backend, "GRAD-6", exponent)


@pytest.mark.clause("GRAD-8")
def test_a_cotangent_of_zeros_gives_zeros(backend):
    x, logits, gate, basis = inputs_of(backend, case_of())
    assert not np.any(backend.sinkhorn_projection_vjp(logits, np.zeros_like(logits), 3))
    assert not any(np.any(gradient) for gradient in backend.adapter_vjp(x, logits, gate, basis, np.zeros_like(x), 3))


@pytest.mark.clause("GRAD-8")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_cotangent_of_nan_is_not_hidden(backend):
    x, logits, gate, basis = inputs_of(backend, case_of())
    square, upstream = np.ones_like(logits), np.array(x)
    square[1, 2] = upstream[3, 4] = np.nan
    assert not np.isfinite(backend.sinkhorn_projection_vjp(logits, square, 3)).any()
    gradients = backend.adapter_vjp(x, logits, gate, basis, upstream, 3)
    assert np.isnan(gradients.x[3]).any()
    assert np.isfinite(gradients.x[[0, 1, 2, 4]]).all()
    for name in INPUTS[1:]:
        assert not np.isfinite(getattr(gradients, name)).all(), f"GRAD-8: {name}"


@pytest.mark.clause("MIX-1", "SINK-1", "GRAD-7")
def test_many_leading_axes(backend):
    """Five of them, each of another length, none of which may be taken for another."""
    case = case_of(leading=(2, 1, 3, 1, 2))
    assert_everything_agrees(backend, case, "MIX-1")
    logits = Logits("normal", 1.0, 3, (2, 1, 3, 1, 2), 9).values.astype(backend.parameter_dtype)
    together = np.asarray(backend.sinkhorn_projection(logits, 3))
    for index in np.ndindex(logits.shape[:-2]):
        expected = reference.sinkhorn_projection(logits[index], 3)
        comparison = Comparison(together[index], expected, 4.0)
        assert_agrees(comparison, ("sinkhorn_projection", "forward"), backend, "SINK-1", index)


@pytest.mark.clause("SINK-2", "ERR-4")
@pytest.mark.parametrize("iterations", [True, 2.0, 2.5, "3", None, float("nan")])
def test_iterations_that_are_no_integer_are_refused(backend, iterations):
    """True and 2.0 too: what somebody did not mean is not to be guessed."""
    x, logits, gate, basis = inputs_of(backend, case_of())
    assert fails(lambda: backend.sinkhorn_projection(logits, iterations))
    assert fails(lambda: backend.sinkhorn_projection_vjp(logits, logits, iterations))
    assert fails(lambda: backend.adapter_forward(x, logits, gate, basis, iterations))
    assert fails(lambda: backend.adapter_vjp(x, logits, gate, basis, x, iterations))


@pytest.mark.clause("BACK-3")
def test_what_may_not_be_written_to_is_read(backend):
    case = case_of()
    arrays = [*inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)]
    for array in arrays:
        array.flags.writeable = False
    x, logits, gate, basis, cotangent = arrays
    backend.sinkhorn_projection(logits, 3)
    backend.sinkhorn_projection_vjp(logits, logits, 3)
    backend.adapter_forward(x, logits, gate, basis, 3)
    backend.adapter_vjp(x, logits, gate, basis, cotangent, 3)


@pytest.mark.clause("BACK-3", "MIX-8")
def test_a_result_shares_no_memory_with_an_argument(backend):
    """Not even where the result is the argument: one stream, which mixing leaves alone."""
    case = Adapter(Logits("normal", 1.0, 1, (), 4), 2, 1, (5,), 1.0, 1.0, 1.0, True, 4)
    x, logits, gate, basis = inputs_of(backend, case)
    results = [
        backend.sinkhorn_projection(logits, 3),
        backend.sinkhorn_projection_vjp(logits, logits, 3),
        backend.adapter_forward(x, logits, gate, basis, 3),
        *backend.adapter_vjp(x, logits, gate, basis, x, 3),
    ]
    assert np.array_equal(results[2], x)
    for result in results:
        assert not any(np.shares_memory(result, argument) for argument in (x, logits, gate, basis)), "BACK-3"


@pytest.mark.clause("BACK-3")
def test_the_state_of_the_process_is_left_alone(backend):
    inputs = inputs_of(backend, case_of())
    np.random.seed(20261123)  # noqa: NPY002  what others in the process may use; not what an earlier call has left

    def state():
        return str(np.random.get_state()), random.getstate(), np.geterr()  # noqa: NPY002

    with np.errstate(divide="print", over="warn", under="print", invalid="print"):
        before = state()
        backend.sinkhorn_projection(inputs[1], 3)
        backend.sinkhorn_projection_vjp(inputs[1], inputs[1], 3)
        backend.adapter_forward(*inputs, 3)
        backend.adapter_vjp(*inputs, inputs[0], 3)
        assert state() == before, "BACK-3"


@pytest.mark.clause("BACK-3", "MIX-2")
@pytest.mark.parametrize("changed", range(4))
def test_the_last_number_of_every_argument_counts(backend, changed):
    """What is computed from a part of an argument, or kept under one, shows where only its last number differs."""
    inputs = [*inputs_of(backend, case_of())]
    backend.sinkhorn_projection(inputs[1], 20)
    backend.adapter_forward(*inputs, 20)
    inputs[changed] = np.array(inputs[changed])
    inputs[changed].reshape(-1)[-1] += 0.5
    x, *parameters = (array.astype(np.float64) for array in inputs)
    expected = reference.adapter_forward(x, reference.AdapterParameters(*parameters), 20) - x
    actual = np.asarray(backend.adapter_forward(*inputs, 20), np.float64) - x
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    assert_agrees(Comparison(actual, expected, 4 * size), FORWARD, backend, "MIX-2", changed)
    mixing = Comparison(backend.sinkhorn_projection(inputs[1], 20), reference.sinkhorn_projection(inputs[1], 20), 4.0)
    assert_agrees(mixing, ("sinkhorn_projection", "forward"), backend, "BACK-3", changed)
