"""Causal attention with grouped queries, sliding window, padding and soft cap.

Source: GQA (arXiv 2305.13245), Mistral (arXiv 2310.06825) for the window, Gemma-2 (arXiv 2408.00118) for the soft cap.
"""

import jax
import jax.numpy as jnp

from backends.jax.dtypes import wide_dtype

Array = jax.Array


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Full float32 products for float32: the default of GPUs and TPUs keeps 10 or 8 bits of the inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else None


def soft_cap(scores: Array, cap: float | None) -> Array:
    """``c tanh(s / c)``; the scores themselves where there is no cap."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def attendable(query_slots: Array, keys: int, key_mask: Array | None, window: Array | None) -> Array:
    """Which keys each query sees: boolean (batch or 1, queries, keys).

    Args:
        query_slots: index of each query in the sequence, padding included, int32 (queries,).
        keys: number of key slots.
        key_mask: (batch, keys), False for padding and for slots not yet filled.
        window: int32 (), keys seen by a query, itself included; 0 for all of them. None: no layer has a window.
    """
    distance = query_slots[:, None] - jnp.arange(keys, dtype=jnp.int32)
    seen = distance >= 0
    if window is not None:
        seen &= (distance < window) | (window == 0)
    return seen[None] if key_mask is None else seen[None] & key_mask[:, None, :]


def attention(query: Array, key: Array, value: Array, seen: Array, scale: float, cap: float | None) -> Array:
    """``softmax(cap(scale q k^T)) v`` per head; query head h reads key head h // (heads / kv_heads).

    Args:
        query: (batch, queries, heads, head_dim).
        key, value: (batch, keys, kv_heads, head_dim).
        seen: as ``attendable`` gives it. A query that sees nothing (padding) averages all values: finite, and unused.

    Returns:
        (batch, queries, heads * head_dim), in the dtype of value. Scores and softmax are float32 or wider.
    """
    batch, queries, heads, head_dim = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, head_dim)
    wide = wide_dtype(value)
    exact = precision(value.dtype)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, precision=exact, preferred_element_type=wide)
    scores = soft_cap(scores * scale, cap)
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value, precision=exact)
    return mixed.reshape(batch, queries, heads * head_dim)
