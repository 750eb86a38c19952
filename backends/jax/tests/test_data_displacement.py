"""The data budget of a stack, against the float64 reference layer by layer; and moments gathered in the decoder."""

from dataclasses import replace

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")

import jax.numpy as jnp

import reference
from backends.jax import CRMAAdapter
from backends.jax.certificates import displacement
from backends.jax.data_displacement import (
    StreamMoments,
    data_displacement,
    limit_data_displacement,
    moments_of,
    stream_total,
)
from backends.jax.tests.test_certificates import CONFIG, LAYERS, layer
from reference.errors import ConfigError, DegenerateBasisError, NonFiniteError, ShapeError

States = tuple[CRMAAdapter, CRMAAdapter, StreamMoments]


@pytest.fixture
def states() -> States:
    """An anchor, a state that has moved in mixing and gates, and the moment of four tokens in each layer."""
    rng = np.random.default_rng(0)
    anchor = CRMAAdapter.init(CONFIG, int(rng.integers(1 << 30)), LAYERS, gate_logit=1.0)
    anchor = replace(anchor, basis=anchor.basis.at[0, 0, 0, 0].set(-0.0))
    moved = jax.tree.map(lambda v: v + 0.1 * jnp.asarray(rng.standard_normal(v.shape), v.dtype), anchor)
    x = rng.standard_normal((LAYERS, 4, CONFIG.hidden_size))
    totals = [reference.stream_moment(x[i], np.asarray(anchor.basis[i])).total for i in range(LAYERS)]
    return anchor, replace(moved, basis=anchor.basis), StreamMoments(np.stack(totals), 4)


def of_reference(states: States, index: int) -> float:
    anchor, moved, moments = states
    moment = reference.StreamMoment(moments.totals[index], moments.tokens)
    return reference.data_displacement(layer(anchor, index), layer(moved, index), moment)


@pytest.mark.clause("DATA-2")
def test_it_is_that_of_the_reference_and_below_the_worst_case(states):
    anchor, moved, moments = states
    found = data_displacement(*states)
    np.testing.assert_allclose(found, [of_reference(states, index) for index in range(LAYERS)], rtol=1e-9)
    assert (found <= displacement(anchor, moved)).all()
    assert found.min() > 1e-4
    np.testing.assert_allclose(data_displacement(anchor, moved, moments.joined(moments)), found, rtol=1e-9)


@pytest.mark.clause("DATA-3")
def test_layers_outside_are_pulled_onto_the_budget_and_the_others_keep_their_bits(states):
    anchor, moved, moments = states
    before = data_displacement(*states)
    epsilon = float(np.median(before))
    limited, fraction = limit_data_displacement(anchor, moved, moments, epsilon)
    after, inside = data_displacement(anchor, limited, moments), before <= epsilon
    assert (after <= epsilon + 1e-6).all()
    assert (after[~inside] >= 0.999 * epsilon).all()
    np.testing.assert_array_equal(fraction == 1, inside)
    for mine, theirs in zip(jax.tree.leaves(limited), jax.tree.leaves(moved), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine[inside], theirs[inside])
    assert np.asarray(limited.basis).tobytes() == np.asarray(anchor.basis).tobytes()
    assert limit_data_displacement(anchor, moved, moments, np.inf)[0] is moved


@pytest.mark.clause("DATA-4", "DATA-5")
def test_what_cannot_be_measured_is_refused(states):
    anchor, moved, moments = states
    for epsilon in (0.0, -1.0, float("nan"), True, "1"):
        with pytest.raises(ConfigError, match="epsilon"):
            limit_data_displacement(anchor, moved, moments, epsilon)  # type: ignore[arg-type]
    other = replace(moved, basis=moved.basis.at[1, 0, 0, 0].add(1.0))
    with pytest.raises(ConfigError, match="another one than the anchor's, in layer 1"):
        data_displacement(anchor, other, moments)
    zero = replace(anchor, basis=anchor.basis.at[1].set(0))
    with pytest.raises(DegenerateBasisError, match="basis of the anchor"):
        data_displacement(zero, zero, moments)
    lopsided = moments.totals.copy()
    lopsided[2, 0, 1] += 1
    for wrong, error, words in (
        (moments._replace(tokens=0), ConfigError, "tokens of the moment"),
        (moments._replace(totals=lopsided), ConfigError, "moment, layer 2"),
        (moments._replace(totals=-moments.totals), ConfigError, "eigenvalue"),
        (moments._replace(totals=moments.totals[:2]), ShapeError, "moments: got 2 layers"),
        (moments._replace(totals=moments.totals[:, :2]), ShapeError, "layer 0"),
        (moments._replace(totals=moments.totals * np.nan), NonFiniteError, "moment, layer 0"),
    ):
        with pytest.raises(error, match=words):
            limit_data_displacement(anchor, moved, wrong, 0.1)


@pytest.mark.clause("DATA-1")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_of_a_batch_are_those_of_the_tokens_that_count(states, dtype):
    """Also where the square of a token overflows float32; padding may hold anything."""
    basis = states[0].basis[1]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, CONFIG.hidden_size)) * 1e25, dtype)
    counted = jnp.array([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    expected = reference.stream_moment(np.asarray(x, np.float64)[np.asarray(counted) > 0], np.asarray(basis))
    found = jax.jit(stream_total)(x.at[:, 4].set(jnp.nan), basis, counted)
    np.testing.assert_allclose(found, expected.total, atol=2e-6)
    np.testing.assert_allclose(stream_total(x.at[0, 1].set(0), basis, jnp.zeros_like(counted).at[0, 1].set(1)), 0)
    with pytest.raises(NonFiniteError, match="residual stream"):
        moments_of(stream_total(x.at[1, 1].set(jnp.inf), basis, counted)[None], 5)
