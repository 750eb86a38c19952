"""What must be refused, by every function that is given it: a VJP refuses what its forward function refuses.

Clauses: SINK-1, SINK-2, MIX-1, MIX-4, MIX-6, GRAD-9, ERR-4.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from conformance.agreement import INPUTS, fails, fails_or_nowhere_finite, inputs_of
from conformance.strategies import Adapter, Logits

SQUARES = {"single": (3, 3), "batch": (2, 3, 3)}
NOT_SQUARE = [(3,), (2, 3), (4, 3, 2), (0, 0), (2, 0, 0), (3, 1), ()]
#: shapes of a cotangent of (3, 3) and of (2, 3, 3), most of which NumPy would broadcast to them
COTANGENTS = {
    "single": [(), (3,), (1, 3), (3, 1), (1, 1), (1, 3, 3), (2, 3, 3), (2, 2), (9,)],
    "batch": [(), (3, 3), (1, 3, 3), (2, 1, 3), (2, 3, 1), (2, 1, 1), (1, 2, 3, 3), (3, 3, 3), (3, 2, 3), (18,)],
}
#: of x (5, 7), whose streams are 3 of rank 2
TOKEN_COTANGENTS = [(), (7,), (1, 7), (5, 1), (1, 1), (1, 5, 7), (5, 6), (5, 8), (4, 7), (7, 5), (35,)]
#: beside S (3, 3) and A (3, 2, 7)
MISFITS = {
    "x": [(), (5, 6), (5, 8), (5, 1), (7, 5), (5, 0)],
    "mix_logits": [(), (3,), (2, 2), (4, 4), (3, 2), (2, 3), (1, 3, 3), (5, 3, 3), (1, 1), (0, 0)],
    "basis": [
        (7,),
        (6, 7),
        (2, 2, 7),
        (4, 1, 7),
        (3, 2, 6),
        (3, 2, 8),
        (1, 3, 2, 7),
        (3, 0, 7),
        (0, 2, 7),
        (3, 2, 1),
        (3, 2, 0),
    ],
}
NO_INTEGERS = [True, False, 2.0, 2.5, "3", None, float("nan"), float("inf")]


def zeros(shape, backend):
    return np.zeros(shape, backend.parameter_dtype)


def arguments(backend, rank=2):
    case = Adapter(Logits("normal", 1.0, 3, (), 4), rank, 1, (5,), 0.0, 1.0, 1.0, False, 5)
    return dict(zip(INPUTS, inputs_of(backend, case), strict=True))


def assert_refused_by_both(backend, iterations=3, **changed):
    """By the adapter's forward function and by its VJP, with a cotangent shaped as x."""
    given = {**arguments(backend), **changed}
    what = {name: getattr(value, "shape", value) for name, value in changed.items()}
    assert fails(lambda: backend.adapter_forward(*given.values(), iterations)), f"forward takes {what or iterations}"
    cotangent = np.ones_like(given["x"])
    assert fails(lambda: backend.adapter_vjp(*given.values(), cotangent, iterations)), (
        f"GRAD-9: the VJP takes {what or iterations}"
    )


@pytest.mark.clause("SINK-1", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("shape", NOT_SQUARE, ids=str)
def test_logits_that_are_not_square_are_refused(backend, shape):
    logits = zeros(shape, backend)
    assert fails(lambda: backend.sinkhorn_projection(logits, 3))
    assert fails(lambda: backend.sinkhorn_projection_vjp(logits, logits, 3)), "GRAD-9"


@pytest.mark.clause("GRAD-9", "GRAD-7", "ERR-4")
@pytest.mark.parametrize("kind", SQUARES)
def test_a_cotangent_of_the_projection_of_another_shape_is_refused(backend, kind):
    logits = zeros(SQUARES[kind], backend)
    taken = [
        shape
        for shape in COTANGENTS[kind]
        if not fails(partial(backend.sinkhorn_projection_vjp, logits, zeros(shape, backend) + 1, 3))
    ]
    assert not taken, f"GRAD-9: a cotangent of {SQUARES[kind]} is taken in the shapes {taken}"


@pytest.mark.clause("GRAD-9", "GRAD-7", "ERR-4")
def test_a_cotangent_of_the_adapter_of_another_shape_is_refused(backend):
    given = arguments(backend)
    taken = [
        shape
        for shape in TOKEN_COTANGENTS
        if not fails(partial(backend.adapter_vjp, *given.values(), zeros(shape, backend) + 1, 3))
    ]
    assert not taken, f"GRAD-9: a cotangent of {given['x'].shape} is taken in the shapes {taken}"


@pytest.mark.clause("SINK-2", "GRAD-9")
@pytest.mark.parametrize("iterations", [0, -1, -(2**40)])
def test_fewer_than_one_iteration_is_refused(backend, iterations):
    logits = zeros((2, 2), backend)
    assert fails(lambda: backend.sinkhorn_projection(logits, iterations))
    assert fails(lambda: backend.sinkhorn_projection_vjp(logits, logits, iterations))
    assert_refused_by_both(backend, iterations)


@pytest.mark.clause("SINK-2", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("iterations", NO_INTEGERS, ids=str)
def test_iterations_that_are_no_integer_are_refused(backend, iterations):
    """True and 2.0 too: what somebody did not mean is not to be guessed."""
    logits = zeros((2, 2), backend)
    backend.sinkhorn_projection(logits, 1)  # what is kept of this call must not serve one with True
    assert fails(lambda: backend.sinkhorn_projection(logits, iterations))
    assert fails(lambda: backend.sinkhorn_projection_vjp(logits, logits, iterations))
    assert_refused_by_both(backend, iterations)


@pytest.mark.clause("MIX-4", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("shape", [(2,), (3,), (0,), (3, 1), (1, 3), (5,), (2, 2)], ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_a_gate_per_stream_is_refused(backend, shape, rank):
    """Nor any other number of gates than one."""
    assert_refused_by_both(backend, **{**arguments(backend, rank), "gate_logit": zeros(shape, backend)})


@pytest.mark.clause("MIX-1", "GRAD-9", "ERR-4")
@pytest.mark.parametrize(("wrong", "shape"), [(wrong, shape) for wrong in MISFITS for shape in MISFITS[wrong]], ids=str)
def test_sizes_that_do_not_fit_are_refused(backend, wrong, shape):
    assert_refused_by_both(backend, **{wrong: zeros(shape, backend) + 0.5})


@pytest.mark.clause("MIX-6", "GRAD-9")
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_basis_of_zeros_gives_no_finite_value(backend, streams):
    given = {"x": zeros((2, 6), backend) + 1, "mix_logits": np.eye(streams, dtype=backend.parameter_dtype)}
    given |= {"gate_logit": zeros((), backend), "basis": zeros((streams, 2, 6), backend)}
    assert fails_or_nowhere_finite(lambda: [backend.adapter_forward(*given.values(), 3)])
    assert fails_or_nowhere_finite(lambda: backend.adapter_vjp(*given.values(), given["x"], 3)), "GRAD-9"
