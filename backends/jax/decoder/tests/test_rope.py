"""Frequencies as transformers computes them, and angles that are right at far positions."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

import jax.numpy as jnp

from backends.jax.decoder.config import RopeConfig
from backends.jax.decoder.rope import cosine_and_sine, inverse_frequencies, rotate


def test_frequencies_equal_transformers(case):
    rotary = case.model.model.rotary_emb
    actual = inverse_frequencies(case.config.rope)
    np.testing.assert_allclose(actual, rotary.original_inv_freq.numpy(), rtol=3e-7)  # the last two bits of a power
    assert case.config.rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_longrope_takes_the_long_factors_for_the_whole_batch(case_of):
    case = case_of("phi4")
    rope, rotary = case.config.rope, case.model.model.rotary_emb
    for last in (39, 40):
        positions = np.array([[0, 1, 5], [2, 3, last]])
        cosine, sine = rotary(torch.zeros(1), torch.from_numpy(positions))
        actual = cosine_and_sine(rope, jnp.asarray(positions))
        half = rope.rotary_dim // 2
        np.testing.assert_allclose(actual[0], cosine[..., :half].numpy(), atol=3e-5)
        np.testing.assert_allclose(actual[1], sine[..., :half].numpy(), atol=3e-5)
    assert rope.attention_factor > 1


def test_angles_are_right_at_far_positions():
    rope = RopeConfig("default", 10000.0, 64)
    positions = np.array([[0, 1, 1000, 4095, 32767, 131071]], np.int32)
    angles = (positions[..., None].astype(np.float32) * inverse_frequencies(rope)).astype(np.float64)
    cosine, sine = jax.jit(cosine_and_sine, static_argnums=0)(rope, positions)
    np.testing.assert_allclose(cosine, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sine, np.sin(angles), atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    rng = np.random.default_rng(1)
    rope = RopeConfig("default", 100.0, 6)
    x = jnp.asarray(rng.normal(size=(1, 2, 3, 8)), jnp.float32)

    def turned(positions):
        return rotate(x, *cosine_and_sine(rope, jnp.asarray([positions])))

    np.testing.assert_array_equal(turned([7, 9])[..., 6:], x[..., 6:])
    np.testing.assert_allclose(np.linalg.norm(turned([7, 9]), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    products = [np.einsum("hd,hd->h", *turned(positions)[0]) for positions in ([7, 9], [107, 109], [7, 10])]
    np.testing.assert_allclose(products[1], products[0], rtol=1e-4)
    assert np.abs(products[2] - products[0]).min() > 1e-2
