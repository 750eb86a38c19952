"""One decoder block: norm, attention, norm, gated MLP, around the residual stream.

Source: what transformers computes for the families Llama, Mistral, Gemma-2 and Phi-3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from backends.jax.decoder.attention import Array, attendable, attention
from backends.jax.decoder.config import Activation, DecoderConfig
from backends.jax.decoder.products import kept, linear
from backends.jax.decoder.rope import rotate
from backends.jax.dtypes import promoted, wide_dtype

LayerWeights = dict[str, Any]  # tensor names of Hugging Face within a layer -> Array, or FrozenWeight of a projection
LayerLora = dict[str, tuple[Array, Array, Array]]  # path of a projection -> A (r, inputs), B (outputs, r), scale ()
KeepKeys = Callable[[Array, Array], tuple[Array, Array]]


class Context(NamedTuple):
    """What all layers share in one pass: rotation (batch, queries, rotary_dim / 2), slots of the queries, padding."""

    cosine: Array
    sine: Array
    query_slots: Array
    key_mask: Array | None
    matmul_dtype: Any = None


def rms_norm(x: Array, weight: Array, config: DecoderConfig) -> Array:
    """``x / sqrt(mean x^2 + epsilon) * w``, in float32 or wider, returned in the dtype of x.

    Like transformers, Gemma multiplies by 1 + w before the result is rounded, the others by w afterwards.
    """
    wide = x.astype(wide_dtype(x))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_epsilon)
    if config.norm_offset:
        return (normed * (1 + weight.astype(wide.dtype))).astype(x.dtype)
    return jnp.multiply(*promoted(normed.astype(x.dtype), weight))


def _sum(left: Array, right: Array) -> Array:
    left, right = promoted(left, right)
    return left + right


def project(x: Array, path: str, weights: LayerWeights, lora: LayerLora, dtype: Any) -> Array:
    """``x W^T + b + scale (x A^T) B^T``, in the dtype of ``x W^T``; the LoRA term is computed in the dtype of A."""
    y = linear(x, weights[f"{path}.weight"], dtype)
    if f"{path}.bias" in weights:
        y = y + weights[f"{path}.bias"].astype(y.dtype)
    if path not in lora:
        return y
    down, up, scale = lora[path]
    low = linear(x if dtype is not None else x.astype(down.dtype), down, dtype)
    change = linear(low, up, dtype)
    return _sum(y, change * scale.astype(change.dtype)).astype(y.dtype)


def activate(gate: Array, name: Activation) -> Array:
    """SiLU, GELU, or GELU in its approximation by tanh, in float32 or wider, returned in the dtype of the argument."""
    wide = gate.astype(wide_dtype(gate))
    result = jax.nn.silu(wide) if name == "silu" else jax.nn.gelu(wide, approximate=name == "gelu_tanh")
    return result.astype(gate.dtype)


def block(
    config: DecoderConfig,
    x: Array,
    weights: LayerWeights,
    lora: LayerLora,
    window: Array | None,
    context: Context,
    keep: KeepKeys,
) -> Array:
    """The residual stream behind one layer: (batch, queries, hidden) -> the same shape and dtype.

    ``keep`` takes this pass's keys and values, (batch, queries, kv_heads, head_dim), and gives those to attend to.
    """
    dtype = context.matmul_dtype

    def normed(h: Array, name: str) -> Array:
        return rms_norm(h, weights[f"{name}.weight"], config)

    heads = _query_key_value(config, normed(x, "input_layernorm"), weights, lora, dtype)
    query, key = (rotate(h, context.cosine, context.sine) for h in heads[:2])
    keys, values = keep(key, heads[2])
    seen = attendable(context.query_slots, keys.shape[1], context.key_mask, window)
    mixed = attention(query, keys, values, seen, config.attention_scale, config.attention_soft_cap)
    update = project(kept(mixed) if mixed.dtype.itemsize == 2 else mixed, "self_attn.o_proj", weights, lora, dtype)
    if config.sandwich_norms:
        x = _sum(x, normed(update, "post_attention_layernorm"))
        update = _mlp(config, normed(x, "pre_feedforward_layernorm"), weights, lora, dtype)
        return _sum(x, normed(update, "post_feedforward_layernorm"))
    x = _sum(x, update)
    return _sum(x, _mlp(config, normed(x, "post_attention_layernorm"), weights, lora, dtype))


def _query_key_value(
    config: DecoderConfig, x: Array, weights: LayerWeights, lora: LayerLora, dtype: Any
) -> tuple[Array, Array, Array]:
    if config.fused:
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = jnp.split(project(x, "self_attn.qkv_proj", weights, lora, dtype), (q, q + kv), axis=-1)
    else:
        parts = [project(x, f"self_attn.{name}_proj", weights, lora, dtype) for name in "qkv"]
    query, key, value = (part.reshape(*part.shape[:-1], -1, config.head_dim) for part in parts)
    return query, key, value


def _mlp(config: DecoderConfig, x: Array, weights: LayerWeights, lora: LayerLora, dtype: Any) -> Array:
    if config.fused:
        gate, up = jnp.split(project(x, "mlp.gate_up_proj", weights, lora, dtype), 2, axis=-1)
    else:
        gate, up = (project(x, f"mlp.{name}_proj", weights, lora, dtype) for name in ("gate", "up"))
    return project(activate(gate, config.activation) * up, "mlp.down_proj", weights, lora, dtype)
