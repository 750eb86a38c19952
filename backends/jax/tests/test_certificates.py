"""Certificates and the displacement budget of a stack, against the float64 reference layer by layer."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")

import jax.numpy as jnp

from backends.jax import CRMAAdapter
from backends.jax.certificates import certificate, displacement, limit_displacement
from reference import AdapterConfig
from reference.adapter import AdapterParameters
from reference.certificates import adapter_spectrum
from reference.certificates import displacement as reference_displacement
from reference.errors import ConfigError, DegenerateBasisError, NonFiniteError, ShapeError

LAYERS, CONFIG = 3, AdapterConfig(14, 3, 2)


def layer(stack: CRMAAdapter, index: int) -> AdapterParameters:
    return AdapterParameters(*(np.asarray(v[index]) for v in (stack.mix_logits, stack.gate_logit, stack.basis)))


@pytest.fixture
def states() -> tuple[CRMAAdapter, CRMAAdapter]:
    """An anchor, and a state that has moved by about 0.1 from it, in gates that are wide open."""
    rng = np.random.default_rng(0)
    anchor = CRMAAdapter.init(CONFIG, int(rng.integers(1 << 30)), LAYERS, gate_logit=1.0)
    moved = jax.tree.map(lambda v: v + 0.1 * jnp.asarray(rng.standard_normal(v.shape), v.dtype), anchor)
    return anchor, moved


@pytest.mark.clause("CERT-1")
def test_singular_values_are_those_of_the_reference(states):
    for stack in states:
        measured = certificate(stack)
        for index in range(LAYERS):
            largest, smallest = adapter_spectrum(layer(stack, index))
            assert measured.largest[index] == pytest.approx(largest, abs=1e-6)
            assert measured.smallest[index] == pytest.approx(smallest, abs=1e-6)
        assert (measured.smallest < 0.95).all()
        assert (measured.sum_error <= 5e-7).all()
        assert (measured.mixing_norm <= 1 + 5e-7).all()
        assert "norm of M" in str(measured)
        assert measured.displacement is None


@pytest.mark.clause("CERT-1")
def test_a_square_adapter_has_no_direction_off_the_basis():
    stack = CRMAAdapter.init(AdapterConfig(6, 3, 2), 0, 2, gate_logit=2.0)
    measured = certificate(stack)
    assert measured.largest[0] == pytest.approx(adapter_spectrum(layer(stack, 0))[0], abs=1e-6)


@pytest.mark.clause("CERT-2")
def test_displacement_is_that_of_the_reference(states):
    anchor, moved = states
    expected = [reference_displacement(layer(moved, index), layer(anchor, index)) for index in range(LAYERS)]
    np.testing.assert_allclose(displacement(anchor, moved), expected, rtol=1e-9)
    np.testing.assert_allclose(certificate(moved, anchor).displacement, expected, rtol=1e-9)
    assert min(expected) > 1e-3
    assert (displacement(anchor, anchor) < 1e-14).all()


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
def test_layers_outside_are_pulled_onto_the_budget_and_the_others_keep_their_bits(states):
    anchor, moved = states
    before = np.sort(displacement(anchor, moved))
    delta = float(before[0] + before[1]) / 2  # one layer is inside, two are not
    limited, fraction = limit_displacement(anchor, moved, delta)
    after = displacement(anchor, limited)
    inside = displacement(anchor, moved) <= delta
    assert inside.sum() == 1
    assert (after <= delta * (1 + 1e-5)).all()  # the state is rounded to float32
    assert (after[~inside] >= 0.999 * delta).all()
    np.testing.assert_array_equal(fraction == 1, inside)
    for mine, theirs in zip(jax.tree.leaves(limited), jax.tree.leaves(moved), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine[inside], theirs[inside])
    assert limit_displacement(anchor, moved, np.inf)[0] is moved


@pytest.mark.clause("BUDGET-3")
def test_what_cannot_be_measured_is_refused(states):
    anchor, moved = states
    for delta in (0.0, -1.0, float("nan"), True, "1"):
        with pytest.raises(ConfigError, match="delta"):
            limit_displacement(anchor, moved, delta)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="mix_logits of the anchor"):
        displacement(CRMAAdapter.init(AdapterConfig(14, 2, 2), 0, LAYERS), moved)
    zero = CRMAAdapter(anchor.mix_logits, anchor.gate_logit, anchor.basis.at[1].set(0))
    with pytest.raises(DegenerateBasisError, match=r"basis of the anchor.*layer 1"):
        displacement(zero, moved)
    with pytest.raises(DegenerateBasisError, match="layer 1"):
        certificate(zero)
    lost = CRMAAdapter(moved.mix_logits, moved.gate_logit.at[0].set(jnp.nan), moved.basis)
    for refused in (lambda: certificate(lost), lambda: displacement(anchor, lost), lambda: displacement(lost, anchor)):
        with pytest.raises(NonFiniteError, match="gate_logit"):
            refused()


@pytest.mark.clause("BUDGET-2")
def test_a_state_without_a_basis_is_outside_of_every_budget(states):
    start, _ = states
    anchor = CRMAAdapter(start.mix_logits, start.gate_logit * 0 + 1, start.basis)  # open: a lost direction would show
    for factor, delta in ((0, 10.0), (0, 1e-3), (-1e-6, 1e-3), (-1, 1e-3)):
        changed = CRMAAdapter(anchor.mix_logits + jnp.eye(3), anchor.gate_logit, anchor.basis * factor)
        limited, fraction = limit_displacement(anchor, changed, delta)
        assert (fraction < 1).all()
        assert (displacement(anchor, limited) <= delta + 1e-6).all()
