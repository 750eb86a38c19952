"""All layers by one ``jax.lax.scan`` over stacked weights, so that compile time does not depend on the depth."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backends.jax.decoder.attention import Array
from backends.jax.decoder.block import Context, LayerLora, LayerWeights, block
from backends.jax.decoder.config import DecoderConfig
from backends.jax.decoder.products import keep_products
from reference.errors import ConfigError, ShapeError

#: Path of a projection -> A (layers, r, inputs), B (layers, outputs, r), scale () or (layers,).
Lora = Mapping[str, tuple[Array, Array, Any]]
#: (parameters of one layer, residual stream behind the layer) -> residual stream
AdapterFunction = Callable[[Any, Array], Array]
#: (parameters of one layer, residual stream behind the layer, before the adapter) -> arrays
ObserveFunction = Callable[[Any, Array], Any]


class Cache(NamedTuple):
    """Keys and values of the tokens so far, each (layers, batch, slots, kv_heads, head_dim); ``slot``: next to fill."""

    keys: Array
    values: Array
    slot: Array


class FineTuning(NamedTuple):
    """What may be put on top of the frozen decoder: LoRA factors per projection, and an adapter behind each block.

    ``adapter_params``: any pytree with a leading axis of layers; ``adapter`` gets one layer of it, and so does
    ``observe``, which changes nothing: what it returns is stacked over layers.
    """

    lora: Lora | None = None
    adapter: AdapterFunction | None = None
    adapter_params: Any = None
    observe: ObserveFunction | None = None


def run_layers(
    config: DecoderConfig,
    weights: LayerWeights,
    x: Array,
    context: Context,
    tuning: FineTuning,
    *,
    cache: Cache | None = None,
    remat: bool = False,
) -> tuple[Array, Cache | None, Any]:
    """The residual stream behind the last layer, the cache with this pass's keys and values, and what was observed.

    Args:
        weights: names within a layer -> (layers, ...).
        x: (batch, queries, hidden).
        remat: keep only each layer's input for the backward pass, and compute the rest again.
    """
    has_window = any(config.windows)
    scanned = {
        "weights": weights,
        "lora": _stacked_lora(config, tuning.lora or {}),
        "adapter": tuning.adapter_params if tuning.adapter or tuning.observe else None,
        "window": np.asarray(config.windows, np.int32) if has_window else None,
        "index": np.arange(config.layers, dtype=np.int32),
    }
    _check_layers(scanned["adapter"], config.layers)

    def one_layer(carry: tuple[Array, Cache | None], layer: dict[str, Any]) -> tuple[tuple[Array, Cache | None], Any]:
        x, cache = carry

        def keep(key: Array, value: Array) -> tuple[Array, Array]:
            nonlocal cache
            if cache is None:
                return key, value
            cache = _stored(cache, layer["index"], key, value)
            return tuple(jax.lax.dynamic_index_in_dim(h, layer["index"], keepdims=False) for h in cache[:2])

        y = block(config, x, layer["weights"], layer["lora"], layer["window"], context, keep)
        seen = None if tuning.observe is None else tuning.observe(layer["adapter"], y)
        if tuning.adapter is not None:
            y = tuning.adapter(layer["adapter"], y)
        return (y.astype(x.dtype), cache), seen

    if remat:
        body = jax.checkpoint(one_layer, prevent_cse=False)
    else:
        body = keep_products(one_layer) if jnp.dtype(context.matmul_dtype or x.dtype).itemsize == 2 else one_layer
    (x, cache), observed = jax.lax.scan(body, (x, cache), scanned)
    return x, cache, observed


def _stored(cache: Cache, layer: Array, key: Array, value: Array) -> Cache:
    zero = jnp.zeros((), jnp.int32)
    start = (layer, zero, cache.slot, zero, zero)
    keys, values = (
        jax.lax.dynamic_update_slice(whole, part[None].astype(whole.dtype), start)
        for whole, part in ((cache.keys, key), (cache.values, value))
    )
    return Cache(keys, values, cache.slot)


def _stacked_lora(config: DecoderConfig, lora: Lora) -> LayerLora:
    shapes, stacked = config.projections, {}
    for path, (down, up, scale) in lora.items():
        if path not in shapes:
            allowed = "paths of projections in this decoder: " + ", ".join(sorted(shapes))
            raise ConfigError("lora", got=repr(path), allowed=allowed, remedy="name the projections as PEFT does")
        outputs, inputs = shapes[path]
        rank = down.shape[1] if down.ndim == 3 else 0
        expected = (config.layers, rank, inputs), (config.layers, outputs, rank)
        if rank < 1 or (down.shape, up.shape) != expected:
            raise ShapeError(
                f"lora {path}",
                got=f"A {down.shape}, B {up.shape}",
                allowed=f"A ({config.layers}, r, {inputs}) and B ({config.layers}, {outputs}, r) with r >= 1",
                remedy="stack the factors of all layers on a leading axis",
            )
        stacked[path] = (down, up, jnp.broadcast_to(jnp.asarray(scale, down.dtype), (config.layers,)))
    return stacked


def _check_layers(params: Any, layers: int) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not np.shape(leaf) or np.shape(leaf)[0] != layers:
            raise ShapeError(
                f"adapter_params{jax.tree_util.keystr(path)}",
                got=str(np.shape(leaf)),
                allowed=f"a leading axis of {layers} layers",
                remedy="stack the parameters of all layers on a leading axis",
            )
