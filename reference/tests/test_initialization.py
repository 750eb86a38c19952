"""Start values of the reference. Clauses: INIT-1..INIT-4."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from conformance.strategies import SEEDS
from reference.errors import CRMAError
from reference.initialization import GATE_LOGIT, MIX_LOGITS_DEVIATION

CONFIGS = st.builds(
    lambda n, r, spare: reference.AdapterConfig(n * r + spare, n, r),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from((0, 1, 20)),
)


def writer_for(config, seed, condition=0.7):
    """(d, d + 5) with known left singular vectors, its columns, and singular values condition^k."""
    rng = np.random.default_rng(seed)
    d = config.hidden_size
    left = np.linalg.qr(rng.standard_normal((d, d)))[0]
    right = np.linalg.qr(rng.standard_normal((d + 5, d)))[0]
    return (left * condition ** np.arange(d)) @ right.T, left


@pytest.mark.clause("INIT-1", "INIT-2")
@pytest.mark.parametrize("principal", [False, True])
@given(config=CONFIGS, seed=SEEDS)
def test_same_seed_same_values_and_rows_are_orthonormal(principal, config, seed):
    writer = writer_for(config, 1)[0] if principal else None
    first, second, other = (reference.init_parameters(config, s, writer=writer) for s in (seed, seed, seed + 1))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first.mix_logits, other.mix_logits)
    if config.hidden_size > 1 and not principal:  # in one dimension there are only two unit vectors
        assert not np.array_equal(first.basis, other.basis)
    assert first.basis.shape == (config.streams, config.rank, config.hidden_size)
    flat = first.basis.reshape(-1, config.hidden_size)
    assert np.abs(flat @ flat.T - np.eye(len(flat))).max() < 1e-12


@pytest.mark.clause("INIT-3")
@pytest.mark.parametrize("skipped", [0, 2])
@given(config=CONFIGS.filter(lambda c: c.hidden_size - c.streams * c.rank >= 2), seed=SEEDS)
def test_principal_directions_are_dealt_to_the_streams_in_turn(skipped, config, seed):
    writer, left = writer_for(config, seed)
    basis = reference.init_parameters(config, seed, writer=writer, skip_directions=skipped).basis
    for k in range(config.streams * config.rank):
        row = basis[k % config.streams, k // config.streams]
        assert abs(row @ left[:, k + skipped]) > 0.99, f"direction {k + skipped} is not where it belongs"


@pytest.mark.clause("INIT-4")
def test_gate_and_logits_at_the_start():
    assert GATE_LOGIT == -5.0
    assert MIX_LOGITS_DEVIATION == 0.5
    logits = np.stack([reference.init_parameters(reference.AdapterConfig(16), seed).mix_logits for seed in range(500)])
    assert logits.std() == pytest.approx(0.5, rel=0.03)  # 8,000 normal values: three standard errors are 2.4%
    assert abs(logits.mean()) < 0.02
    assert reference.init_parameters(reference.AdapterConfig(16), 0).gate_logit == -5.0


@pytest.mark.clause("INIT-4")
@given(seed=SEEDS, streams=st.integers(2, 6))
def test_thirty_two_layers_shrink_no_direction_by_a_fifth(seed, streams):
    """The worst case: every layer has the same basis, so that the shrinkage adds up in the same directions."""
    rng = np.random.default_rng(seed)
    config = reference.AdapterConfig(streams * 2, streams, 2)
    basis = reference.init_parameters(config, rng).basis
    product = np.eye(config.hidden_size)
    for _ in range(32):
        layer = reference.init_parameters(config, rng)._replace(basis=basis)
        product = reference.adapter_forward(product, layer)
    smallest = np.linalg.svd(product, compute_uv=False)[-1]
    assert 0.8 < smallest < 1.0


@pytest.mark.clause("INIT-4")
@given(seed=SEEDS)
def test_every_parameter_has_a_gradient_at_the_start(seed):
    """Near identity comes from the gate alone: with M = I as well, the gradients of gate and basis would vanish."""
    config, rng = reference.AdapterConfig(24), np.random.default_rng(seed)
    parameters = reference.init_parameters(config, rng)
    x = rng.standard_normal((8, 24))
    # Along what the adapter does to x: a blind cotangent may, by chance, see nothing of a single number.
    cotangent = reference.adapter_forward(x, parameters) - x
    cotangent = cotangent / np.linalg.norm(cotangent) + 0.1 * rng.standard_normal((8, 24)) / np.sqrt(x.size)
    gradients = reference.adapter_vjp(x, parameters, cotangent)
    assert all(np.linalg.norm(gradient) > 1e-4 for gradient in gradients)
    at_identity = parameters._replace(mix_logits=1e4 * np.eye(4))
    vanished = reference.adapter_vjp(x, at_identity, cotangent)
    assert np.linalg.norm(vanished.gate_logit) + np.linalg.norm(vanished.basis) < 1e-12


@pytest.mark.clause("INIT-3", "MIX-1")
@pytest.mark.parametrize(
    ("seed", "writer", "skipped"),
    [
        (0, np.ones((15, 20)), 0),
        (0, np.ones((16, 10)), 0),
        (0, np.ones((16, 20)), 1),
        (0, np.full((16, 20), np.nan), 0),
        (0, None, -1),
        (-1, None, 0),
    ],
)
def test_start_values_that_cannot_be_had_are_refused(seed, writer, skipped):
    with pytest.raises(CRMAError):
        reference.init_parameters(reference.AdapterConfig(16), seed, writer=writer, skip_directions=skipped)


@pytest.mark.clause("MIX-1")
def test_more_directions_than_the_stream_has_are_refused():
    with pytest.raises(CRMAError):
        reference.AdapterConfig(15)
