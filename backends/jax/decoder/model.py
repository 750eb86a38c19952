"""The decoder as pure functions of its weights: logits and next-token loss.

>>> params, config = load_decoder("path/to/model")                                              # doctest: +SKIP
>>> jax.jit(logits)(params, config, input_ids)                                                  # doctest: +SKIP
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backends.jax.decoder.attention import Array, soft_cap
from backends.jax.decoder.block import Context, rms_norm
from backends.jax.decoder.config import DecoderConfig
from backends.jax.decoder.products import linear
from backends.jax.decoder.rope import cosine_and_sine
from backends.jax.decoder.stack import AdapterFunction, Cache, FineTuning, Lora, ObserveFunction, run_layers
from backends.jax.dtypes import wide_dtype
from reference.errors import ConfigError, ShapeError

#: "embedding" (vocab, d), "layers" {name within a layer: (layers, ...)}, "norm" (d,), and "head" (vocab, d) if untied,
#: or if it is kept in another dtype than the embedding it is tied to.
Params = dict[str, Any]
IGNORED = -100


def logits(
    params: Params,
    config: DecoderConfig,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    position_ids: Any = None,
    lora: Lora | None = None,
    adapter: AdapterFunction | None = None,
    adapter_params: Any = None,
    remat: bool = False,
    matmul_dtype: Any = None,
) -> Array:
    """Scores of each next token, (batch, tokens, vocab), in the dtype of the weights.

    Args:
        params: stacked weights, as ``load_decoder`` gives them.
        input_ids: integers (batch, tokens). An id outside of the vocabulary is refused where the values are known,
            and makes the scores of its row NaN under ``jit``.
        attention_mask: (batch, tokens), 0 for padding, on either side; None for no padding. Scores at padding mean
            nothing.
        position_ids: (batch, tokens); by default the tokens are counted from 0 without the padding. longrope takes its
            long factors for the whole batch where any of them reaches the original length.
        lora: path of a projection, e.g. "self_attn.q_proj" -> A (layers, r, inputs), B (layers, outputs, r), scale.
        adapter, adapter_params: a function (parameters of one layer, x) -> x for what each block gives, and its
            parameters with a leading axis of layers.
        remat: recompute the inside of each layer in the backward pass instead of keeping it.
        matmul_dtype: round to this dtype for products only (mixed precision: float32 weights, jnp.bfloat16 here).

    Raises: ShapeError, ConfigError.
    """
    tuning = FineTuning(lora, adapter, adapter_params)
    given = input_ids, attention_mask, position_ids
    hidden, _ = _from_tokens(params, config, *given, tuning, remat=remat, matmul_dtype=matmul_dtype)
    return unembed(params, config, hidden, matmul_dtype)


def observed(
    params: Params,
    config: DecoderConfig,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    observe: ObserveFunction,
    position_ids: Any = None,
    lora: Lora | None = None,
    adapter: AdapterFunction | None = None,
    adapter_params: Any = None,
    matmul_dtype: Any = None,
) -> Any:
    """What ``observe``, a function (parameters of one layer, x), returns for what each block gives, before its adapter;
    stacked on a leading axis of layers. Everything else as in :func:`logits`."""
    tuning = FineTuning(lora, adapter, adapter_params, observe)
    given = input_ids, attention_mask, position_ids
    return _from_tokens(params, config, *given, tuning, remat=False, matmul_dtype=matmul_dtype)[1]


def _from_tokens(
    params: Params,
    config: DecoderConfig,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    tuning: FineTuning,
    *,
    remat: bool,
    matmul_dtype: Any,
) -> tuple[Array, Any]:
    """Hidden states behind the final norm, and what was observed."""
    ids, mask = check_tokens(config, input_ids, attention_mask)
    if position_ids is not None and np.shape(position_ids) != ids.shape:
        got, allowed = str(np.shape(position_ids)), f"{ids.shape}, as input_ids"
        raise ShapeError("position_ids", got=got, allowed=allowed, remedy="leave it out, or give one per token")
    positions = positions_from_mask(ids, mask) if position_ids is None else jnp.asarray(position_ids, jnp.int32)
    slots = jnp.arange(ids.shape[1], dtype=jnp.int32)
    context = make_context(config, positions, slots, mask, matmul_dtype)
    hidden, _, seen = run(params, config, ids, context, tuning, remat=remat)
    return hidden, seen


def loss(
    params: Params, config: DecoderConfig, input_ids: Any, labels: Any, attention_mask: Any = None, **options: Any
) -> Array:
    """Mean next-token negative log-likelihood over the labels other than -100, in nats; NaN where there is none.

    ``labels`` (batch, tokens) are not shifted: the label at t + 1 is predicted by the scores at t. ``options`` are
    those of :func:`logits`.
    """
    losses, counted = token_losses(logits(params, config, input_ids, attention_mask, **options), labels)
    return losses.sum() / counted.sum().astype(losses.dtype)


def token_losses(scores: Array, labels: Any) -> tuple[Array, Array]:
    """``-log softmax(scores_t)[label_(t+1)]`` in float32 or wider, 0 where the label is -100; and where it is not.

    scores (batch, tokens, vocab), labels (batch, tokens) -> both (batch, tokens - 1). Raises: ShapeError.
    """
    if np.shape(labels) != scores.shape[:2]:
        got, allowed = str(np.shape(labels)), f"{scores.shape[:2]}, as input_ids"
        raise ShapeError("labels", got=got, allowed=allowed, remedy="one label per token, -100 where none is counted")
    targets = jnp.asarray(labels, jnp.int32)[:, 1:]
    counted = targets != IGNORED
    wide = scores[:, :-1].astype(wide_dtype(scores))
    picked = jnp.take_along_axis(wide, jnp.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(counted, jax.nn.logsumexp(wide, axis=-1) - picked, 0), counted


def run(
    params: Params,
    config: DecoderConfig,
    ids: Array,
    context: Context,
    tuning: FineTuning,
    *,
    cache: Cache | None = None,
    remat: bool = False,
) -> tuple[Array, Cache | None, Any]:
    """Hidden states behind the final norm, (batch, tokens, hidden), the cache, and what was observed."""
    x = params["embedding"].at[ids].get(mode="fill", fill_value=np.nan, wrap_negative_indices=False)
    if config.embedding_scale is not None:
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
    x, cache, seen = run_layers(config, params["layers"], x, context, tuning, cache=cache, remat=remat)
    return rms_norm(x, params["norm"], config), cache, seen


def unembed(params: Params, config: DecoderConfig, hidden: Array, matmul_dtype: Any = None) -> Array:
    """(..., hidden) -> capped scores (..., vocab)."""
    head = params["embedding" if config.tied and "head" not in params else "head"]
    scores = linear(hidden, head, matmul_dtype)
    return soft_cap(scores, config.logit_soft_cap)


def make_context(
    config: DecoderConfig, positions: Array, slots: Array, mask: Array | None, matmul_dtype: Any
) -> Context:
    return Context(*cosine_and_sine(config.rope, positions), slots, mask, matmul_dtype)


def positions_from_mask(ids: Array, mask: Array | None) -> Array:
    """Tokens counted from 0 without the padding, whose own positions are 0; int32 (batch, tokens)."""
    if mask is None:
        return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def check_tokens(config: DecoderConfig, input_ids: Any, attention_mask: Any) -> tuple[Array, Array | None]:
    """Ids as int32 (batch, tokens), mask as booleans. Raises: ShapeError, ConfigError."""
    try:
        given = input_ids if hasattr(input_ids, "dtype") else np.asarray(input_ids)
    except ValueError as error:  # rows of different length
        remedy = "pad the rows, and give an attention_mask"
        raise ShapeError("input_ids", got=str(error), allowed="integers (batch, tokens)", remedy=remedy) from error
    if given.ndim != 2 or not jnp.issubdtype(given.dtype, np.integer) or not given.size:
        got = f"{given.dtype} {given.shape}"
        raise ShapeError("input_ids", got=got, allowed="integers (batch, tokens)", remedy="encode a batch of texts")
    if isinstance(given, np.ndarray) and not 0 <= given.min() <= given.max() < config.vocab_size:
        got, allowed = f"{given.min()} to {given.max()}", f"0 to {config.vocab_size - 1}"
        raise ConfigError("input_ids", got=got, allowed=allowed, remedy="take the tokenizer that belongs to the model")
    ids = jnp.asarray(given, jnp.int32)
    if attention_mask is None:
        return ids, None
    if np.shape(attention_mask) != ids.shape:
        got, allowed = str(np.shape(attention_mask)), f"{ids.shape}, as input_ids"
        raise ShapeError("attention_mask", got=got, allowed=allowed, remedy="1 for tokens, 0 for padding")
    return ids, jnp.asarray(attention_mask).astype(bool)
