"""Text from a causal LM: prompts as in training, padded on the left, greedy unless a temperature is given.

Source: ours; decoding by transformers' ``generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from backends.finetune.encoding import encode, padding_id
from backends.finetune.tasks import Example
from reference.errors import ConfigError


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's token ids, exactly as the training examples begin.

    Raises: ConfigError for an empty prompt where the tokenizer has no beginning-of-text token.
    """
    if not prompt and tokenizer.bos_token_id is None:
        raise ConfigError(
            "prompt", got="an empty text", allowed="a text with at least one token", remedy="write a prompt"
        )
    example = encode([Example(prompt, " x")], tokenizer, 2**31, task="prompt")[0]
    return list(example.ids[: example.answer_start])


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """What ``model`` writes after each prompt, up to its end-of-text token, without the prompt.

    Prompts of one batch are padded on the left and masked. Temperature 0 is greedy decoding; above it, tokens are drawn
    with a generator that starts from ``seed``; the caller's is left alone. Settings stored with the model (sampling,
    penalties) are not used.

    Raises: ConfigError for a size below 1, and for prompts that leave no room within the model's positions.
    """
    for field, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(field, got=value, allowed="an integer >= 1", remedy="leave it at its default")
    if not 0 <= temperature < float("inf"):
        raise ConfigError("temperature", got=temperature, allowed="0 (greedy) or more", remedy="use 0")
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    _check_lengths(model, encoded, max_new_tokens)
    pad, ends = padding_id(tokenizer), _end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    device = next(model.parameters()).device
    texts = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(encoded), batch_size):
            ids, mask = _left_padded(encoded[start : start + batch_size], pad)
            output = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
            for row in output[:, ids.shape[1] :].tolist():
                stop = next((index for index, token in enumerate(row) if token in ends), len(row))
                texts.append(tokenizer.decode(row[:stop], skip_special_tokens=True))
    return texts


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (batch, longest), int64."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The token that training ends every answer with, and those that the base model ends with."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return sorted(ends)


def _check_lengths(model: Any, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(row) for row in encoded), default=0)
    if room is not None and longest + max_new_tokens > room:
        raise ConfigError(
            "prompt",
            got=f"{longest} tokens, and {max_new_tokens} to be written",
            allowed=f"{room} tokens in all, which is what the model has positions for",
            remedy="shorten the prompt, or lower --max-new-tokens",
        )
