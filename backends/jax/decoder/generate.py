"""Greedy generation with a cache of keys and values of fixed length, in one compiled loop."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from backends.jax.decoder.attention import Array
from backends.jax.decoder.config import DecoderConfig
from backends.jax.decoder.model import Params, check_tokens, make_context, positions_from_mask, run, unembed
from backends.jax.decoder.stack import AdapterFunction, Cache, FineTuning, Lora
from reference.errors import ConfigError


class _State(NamedTuple):
    tokens: Array  # int32 (batch, slots): prompt, generated tokens, then padding
    mask: Array  # bool (batch, slots): False for the padding of the prompt
    done: Array  # bool (batch,)
    cache: Cache  # its next slot is that of the newest token, which the decoder has not seen yet


def generate(
    params: Params,
    config: DecoderConfig,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None = None,
    pad_token_id: int | None = None,
    lora: Lora | None = None,
    adapter: AdapterFunction | None = None,
    adapter_params: Any = None,
    matmul_dtype: Any = None,
) -> NDArray[np.int32]:
    """Prompts and the most likely continuation of each, int32 (batch, tokens + at most ``max_new_tokens``).

    Stops when every row has come to a token of ``eos_token_ids`` (the model's own by default, () for none); rows that
    stop earlier are filled with ``pad_token_id`` (by default the model's own, else the first end token). Prompts of
    different length are padded on the left. Compiles once per shape of the prompts and ``max_new_tokens``; give the
    same function as ``adapter`` each time. Otherwise as :func:`backends.jax.decoder.model.logits`.

    Raises: ShapeError, ConfigError.
    """
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        got = repr(max_new_tokens)
        raise ConfigError("max_new_tokens", got=got, allowed="an integer of at least 1", remedy="ask for a token")
    given_ids = np.asarray(input_ids) if hasattr(input_ids, "dtype") else input_ids
    ids, given_mask = (np.asarray(h) for h in check_tokens(config, given_ids, attention_mask))
    mask = np.ones(ids.shape, bool) if attention_mask is None else given_mask
    left_padded = mask[:, -1] & (np.diff(mask.astype(np.int8), axis=1) >= 0).all(axis=1)
    if not left_padded.all():
        got = f"padding behind or within the tokens of row {int(np.argmin(left_padded))}"
        allowed = "rows of 0 for padding, then 1 for at least one token"
        raise ConfigError("attention_mask", got=got, allowed=allowed, remedy="pad prompts on the left")
    eos = tuple(config.eos_token_ids if eos_token_ids is None else eos_token_ids)
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    pad = (eos[0] if eos else 0) if pad is None else pad

    longest, tokens = int(mask.sum(axis=1).max()), ids.shape[1]
    room = ((0, 0), (0, max_new_tokens))
    buffer, seen = np.pad(ids, room, constant_values=pad), np.pad(mask, room, constant_values=True)
    steps = _Steps(config, adapter, matmul_dtype)
    given = _Given(params, lora, adapter_params, np.asarray(eos, np.int32), np.int32(pad))
    end = tokens + max_new_tokens - 1
    state = _prefill(steps, given, buffer, seen, np.zeros(len(ids), bool), length=tokens)
    if config.rope.rope_type == "longrope" and longest <= config.rope.original_length:
        # Beyond the original length all keys are turned by other angles: the cache is computed again there.
        switch = tokens + config.rope.original_length - longest
        state = _decode(steps, given, state, np.int32(min(end, switch)))
        if int(state.cache.slot) == switch < end and not bool(state.done.all()):
            state = _prefill(steps, given, state.tokens, state.mask, state.done, length=switch + 1)
    state = _decode(steps, given, state, np.int32(end))
    return np.asarray(state.tokens)[:, : int(state.cache.slot) + 1]


class _Steps(NamedTuple):
    """What a compiled step depends on besides arrays."""

    config: DecoderConfig
    adapter: AdapterFunction | None
    matmul_dtype: Any


class _Given(NamedTuple):
    """The arrays that stay the same from step to step."""

    params: Params
    lora: Lora | None
    adapter_params: Any
    eos: Any  # int32 (end tokens,)
    pad: Any  # int32 ()


@partial(jax.jit, static_argnames=("steps", "length"))
def _prefill(steps: _Steps, given: _Given, tokens: Array, mask: Array, done: Array, length: int) -> _State:
    """Let the decoder see the first ``length`` slots, and choose the token behind them."""
    config, (batch, slots) = steps.config, tokens.shape
    dtype = given.params["embedding"].dtype if steps.matmul_dtype is None else steps.matmul_dtype
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))
    state = _State(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(done), cache)
    return _advance(steps, given, state, length)


@partial(jax.jit, static_argnames="steps", donate_argnames="state")
def _decode(steps: _Steps, given: _Given, state: _State, end: Array) -> _State:
    """Token by token, until slot ``end`` is filled or all rows are done."""
    return jax.lax.while_loop(
        lambda state: (state.cache.slot < end) & ~state.done.all(),
        lambda state: _advance(steps, given, state, 1),
        state,
    )


def _advance(steps: _Steps, given: _Given, state: _State, length: int) -> _State:
    """Let the decoder see the next ``length`` slots, and choose the token behind them."""
    config, start = steps.config, state.cache.slot
    positions = positions_from_mask(state.tokens, state.mask)
    ids, positions = (jax.lax.dynamic_slice_in_dim(h, start, length, axis=1) for h in (state.tokens, positions))
    slots = start + jnp.arange(length, dtype=jnp.int32)
    context = make_context(config, positions, slots, state.mask, steps.matmul_dtype)
    tuning = FineTuning(given.lora, steps.adapter, given.adapter_params)
    hidden, cache, _ = run(given.params, config, ids, context, tuning, cache=state.cache)
    assert cache is not None
    scores = unembed(given.params, config, hidden[:, -1], steps.matmul_dtype)
    chosen = jnp.where(state.done, given.pad, jnp.argmax(scores, axis=-1).astype(jnp.int32))
    done = state.done | jnp.isin(chosen, given.eos)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, chosen[:, None], start + length, axis=1)
    return _State(tokens, state.mask, done, cache._replace(slot=start + length))
