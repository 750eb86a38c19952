"""What must be refused, by every function that is given it: a VJP refuses what its forward function refuses.

Clauses: SINK-1, SINK-2, MIX-1, MIX-4, MIX-6, GRAD-9, ERR-4.
"""

from functools import partial

import numpy as np
import pytest

from conformance.agreement import fails, fails_or_all_nan, fails_or_nowhere_finite
from conformance.profiles import slow
from conformance.scenes import SCENES, inputs_in, other_shapes

K = 3
SQUARES = [(3, 3), (2, 3, 3), *map(slow, ((6, 6), (2, 1, 2, 4, 4)))]
NOT_SQUARE = [(3,), (), (0, 0), (2, 0, 0), (0, 3, 2), (2, 0, 3, 2), (9,)]
NOT_SQUARE += [
    shape for size in (3, 6) for shape in ((size - 1, size), (size + 1, size), (2, 1, size, size - 1), (size, 1))
]
NO_INTEGERS = [True, False, 2.0, 2.5, "3", None, float("nan"), float("inf")]


def zeros(shape, backend):
    return np.zeros(shape, backend.parameter_dtype)


def fits(name, shape, given):
    """Whether an argument may have this shape beside the others: any number of tokens, any rank, n r > d or not."""
    n, _, d = given["basis"].shape
    if name == "x":
        return shape[-1:] == (d,)
    return name == "basis" and len(shape) == 3 and shape[::2] == (n, d) and shape[1] >= 1


def assert_refused_by_both(backend, given, iterations=K, **changed):
    """By the adapter's forward function and by its VJP, with a cotangent shaped as x."""
    given = {**given, **changed}
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
    assert fails(lambda: backend.sinkhorn_projection(logits, K))
    assert fails(lambda: backend.sinkhorn_projection_vjp(logits, logits, K)), "GRAD-9"


@pytest.mark.clause("GRAD-9", "GRAD-7", "ERR-4")
@pytest.mark.parametrize("shape", SQUARES, ids=str)
def test_a_cotangent_of_the_projection_of_another_shape_is_refused(backend, shape):
    """Most of them are such as NumPy would broadcast to it."""
    call = partial(backend.sinkhorn_projection_vjp, zeros(shape, backend))
    taken = [other for other in other_shapes(shape) if not fails(partial(call, zeros(other, backend) + 1, K))]
    assert not taken, f"GRAD-9: a cotangent of {shape} is taken in the shapes {taken}"


@pytest.mark.clause("GRAD-9", "GRAD-7", "ERR-4")
@pytest.mark.parametrize("scene", SCENES)
def test_a_cotangent_of_the_adapter_of_another_shape_is_refused(backend, scene):
    given = inputs_in(backend, scene)
    x, call = given["x"], partial(backend.adapter_vjp, *given.values())
    taken = [shape for shape in other_shapes(x.shape) if not fails(partial(call, np.ones(shape, x.dtype), K))]
    assert not taken, f"GRAD-9: a cotangent of {x.shape} is taken in the shapes {taken}"


@pytest.mark.clause("SINK-2", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("iterations", [0, -1, -(2**40), *NO_INTEGERS], ids=str)
@pytest.mark.parametrize("scene", SCENES)
def test_iterations_that_are_no_integer_above_0_are_refused(backend, scene, iterations):
    """True and 2.0 too: what somebody did not mean is not to be guessed."""
    given = inputs_in(backend, scene)
    logits = given["mix_logits"]
    backend.sinkhorn_projection(logits, 1)  # what is kept of this call must not serve one with True
    for batch in (logits, logits[None][:0]):
        assert fails(partial(backend.sinkhorn_projection, batch, iterations)), f"{batch.shape}"
        assert fails(partial(backend.sinkhorn_projection_vjp, batch, batch, iterations)), f"GRAD-9: {batch.shape}"
    assert_refused_by_both(backend, given, iterations)


@pytest.mark.clause("MIX-4", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("scene", SCENES)
def test_a_gate_per_stream_is_refused(backend, scene):
    """Nor any other number of gates than one."""
    given = inputs_in(backend, scene)
    n, rank, _ = given["basis"].shape
    for shape in {(2,), (3,), (0,), (n, 1), (1, n), (2, 2), (n + 1,), (rank + 1,)} - {(1, 1)}:
        assert_refused_by_both(backend, given, gate_logit=zeros(shape, backend))


@pytest.mark.clause("MIX-1", "GRAD-9", "ERR-4")
@pytest.mark.parametrize("wrong", ["x", "mix_logits", "basis"])
@pytest.mark.parametrize("scene", SCENES)
def test_sizes_that_do_not_fit_are_refused(backend, scene, wrong):
    given = inputs_in(backend, scene)
    for shape in other_shapes(given[wrong].shape):
        if not fits(wrong, shape, given):
            assert_refused_by_both(backend, given, **{wrong: np.full(shape, 0.5, given[wrong].dtype)})


@pytest.mark.clause("MIX-6", "GRAD-9")
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize("scene", SCENES)
def test_a_basis_of_zeros_gives_no_finite_value(backend, scene):
    given = inputs_in(backend, scene)
    given["basis"] = np.zeros_like(given["basis"])
    assert fails_or_all_nan(lambda: backend.adapter_forward(*given.values(), K))
    assert fails_or_nowhere_finite(lambda: backend.adapter_vjp(*given.values(), given["x"], K)), "GRAD-9"
