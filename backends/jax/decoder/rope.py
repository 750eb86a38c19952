"""Rotary position embedding, with the scalings default, linear, llama3 and longrope, of all or part of a head.

Source: RoFormer (arXiv 2104.09864), LongRoPE (arXiv 2402.13753); names and orders of operation as in transformers.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from backends.jax.decoder.config import RopeConfig
from backends.jax.dtypes import wide_dtype


def inverse_frequencies(rope: RopeConfig, long: bool = False) -> NDArray[np.float32]:
    """``theta^(-2 i / rotary_dim)``, scaled as the type asks; shape (rotary_dim / 2,), radians per position.

    Computed in float32, step by step as transformers does: at position 10^5 an angle keeps only two decimals, and
    frequencies that are rounded otherwise would turn other angles than those the model was trained with.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    powers = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    if rope.rope_type == "longrope":
        factors = np.asarray(rope.long_factors if long else rope.short_factors, np.float32)
        return (np.float32(1) / (factors * powers)).astype(np.float32)
    plain = np.float32(1) / powers
    if rope.rope_type == "linear":
        plain = plain / np.float32(rope.factor)
    if rope.rope_type == "llama3":
        plain = _stretched_where_slow(plain, rope)
    return plain.astype(np.float32)


def _stretched_where_slow(plain: NDArray[np.float32], rope: RopeConfig) -> NDArray[np.float32]:
    """Wavelengths that fit into the original length many times stay; long ones are stretched; between, a blend."""
    wavelengths = np.float32(2 * math.pi) / plain
    turns = np.float32(rope.original_length) / wavelengths
    span = rope.high_freq_factor - rope.low_freq_factor
    share = (turns - np.float32(rope.low_freq_factor)) / np.float32(span)
    blend = (1 - share) * plain / np.float32(rope.factor) + share * plain
    slow = wavelengths > rope.original_length / rope.low_freq_factor
    fast = wavelengths < rope.original_length / rope.high_freq_factor
    return np.where(slow, plain / np.float32(rope.factor), np.where(fast, plain, blend)).astype(np.float32)


def cosine_and_sine(rope: RopeConfig, position_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions (batch, tokens) -> cosine and sine of the angles, each float32 (batch, tokens, rotary_dim / 2).

    longrope takes its long factors for the whole batch where any position lies beyond the original length.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope))
    if rope.rope_type == "longrope":
        beyond = jnp.max(position_ids) + 1 > rope.original_length
        frequencies = jnp.where(beyond, jnp.asarray(inverse_frequencies(rope, long=True)), frequencies)
    angles = position_ids[..., None].astype(jnp.float32) * frequencies
    factor = np.float32(rope.attention_factor)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turn the pairs (x_i, x_(i + rotary_dim / 2)) of each head by their angle; the entries behind them pass through.

    x: (batch, tokens, heads, head_dim), any dtype; computed in float32 or wider, returned in the dtype of x.
    """
    half = cosine.shape[-1]
    wide = x.astype(wide_dtype(x))
    cosine, sine = (turn[:, :, None, :].astype(wide.dtype) for turn in (cosine, sine))
    first, second = wide[..., :half], wide[..., half : 2 * half]
    turned = [first * cosine - second * sine, second * cosine + first * sine, wide[..., 2 * half :]]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
