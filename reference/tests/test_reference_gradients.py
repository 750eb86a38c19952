"""Gradients of the reference, in float64, against central differences of its own forward pass. GRAD-1, 2, 4, 5, 6."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference
from conformance.agreement import CLAUSES, INPUTS, mixing_cotangent, parameters_of, settled_within
from conformance.compare import assert_close
from conformance.strategies import ITERATIONS, SEEDS, SMOOTH, adapters, random_cotangent
from conformance.tolerances import Tolerance

DIFFERENCE = Tolerance(
    "float64", 0, 1e-6, 1e-6, "central differences with a step of 1e-6: error h^2 + eps / h, about 1e-9"
)


def directional_difference(function, inputs, index, direction, step):
    moved = [[*inputs], [*inputs]]
    moved[0][index] = inputs[index] + step * direction
    moved[1][index] = inputs[index] - step * direction
    return (function(*moved[0]) - function(*moved[1])) / (2 * step)


@pytest.mark.clause("GRAD-4", "GRAD-5", "GRAD-6")
@pytest.mark.parametrize("name", INPUTS)
@given(case=adapters(SMOOTH, gates=st.floats(-3.0, 3.0)), iterations=ITERATIONS, seed=SEEDS)
def test_reference_adapter_vjp_is_the_adjoint_of_its_derivative(name, case, iterations, seed):
    """``<Jv, w> = <v, J^T w>`` with Jv by central differences."""
    index, rng = INPUTS.index(name), np.random.default_rng(seed)
    inputs: list[np.ndarray] = [
        np.asarray(a, np.float64)
        for a in (case.x / case.x_scale, case.mix_logits, case.gate_logit, case.basis / case.basis_scale)
    ]
    direction, cotangent = rng.standard_normal(inputs[index].shape), np.float64(case.cotangent)

    def forward(x, *parameters):
        return reference.adapter_forward(x, reference.AdapterParameters(*parameters), iterations)

    assume(settled_within(case.logits, mixing_cotangent(case, iterations), iterations, 1e-4 * case.x_scale).all())
    by_difference = float((directional_difference(forward, inputs, index, direction, 1e-6) * cotangent).sum())
    gradients = reference.adapter_vjp(
        inputs[0], reference.AdapterParameters(inputs[1], inputs[2], inputs[3]), cotangent, iterations
    )
    by_vjp = float((direction * gradients[index]).sum())
    size = float(np.linalg.norm(cotangent)) * max(1.0, float(np.linalg.norm(inputs[0])))
    assume(by_vjp == 0 or abs(by_vjp) > 1e-4 * size)
    assert_close(by_difference, by_vjp, DIFFERENCE, clause=CLAUSES[name], scale=size, context=(case, iterations, seed))


@pytest.mark.clause("GRAD-1", "GRAD-2")
@given(case=SMOOTH, iterations=ITERATIONS, seed=SEEDS)
def test_reference_projection_vjp_is_the_derivative_entry_by_entry(case, iterations, seed):
    cotangent = random_cotangent(case.values.shape, seed).astype(np.float64)
    assume(settled_within(case, cotangent, iterations, 1e-4).all())
    logits = np.float64(case.values)
    step = 1e-6 * np.eye(case.n**2).reshape(-1, case.n, case.n)
    difference = reference.sinkhorn_projection(logits + step, iterations) - reference.sinkhorn_projection(
        logits - step, iterations
    )
    by_difference = (difference * cotangent).sum(axis=(-2, -1)).reshape(logits.shape) / 2e-6
    expected = reference.sinkhorn_projection_vjp(logits, cotangent, iterations)
    assume(not expected.any() or np.abs(expected).max() > 1e-4)
    assert_close(
        by_difference, expected, DIFFERENCE, clause="GRAD-1", scale=np.abs(cotangent).max(), context=(case, seed)
    )


@pytest.mark.clause("MIX-2", "GRAD-4")
@given(case=adapters(), iterations=ITERATIONS)
def test_reference_adapter_is_linear_in_x(case, iterations):
    """So its gradient for x is its transpose: ``<G x, w> = <x, G^T w>`` without any difference quotient."""
    x, cotangent = np.float64(case.x), np.float64(case.cotangent)
    forward = reference.adapter_forward(x, parameters_of(case), iterations)
    backward = reference.adapter_vjp(x, parameters_of(case), cotangent, iterations).x
    size = np.linalg.norm(x) * np.linalg.norm(cotangent)
    assert abs((forward * cotangent).sum() - (x * backward).sum()) <= 1e-13 * size
