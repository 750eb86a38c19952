"""Text from a causal LM: prompts as in training, padded on the left, greedy unless a temperature is given.

Source: ours; decoding by transformers' ``generate``.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from backends.finetune.models.limits import limits_of
from backends.finetune.tasks.chat import Chat, Message
from backends.finetune.tasks.encoding import padding_id
from backends.finetune.tasks.token_ids import TokenIds, UnusableText
from backends.torch.attach import prepared
from reference.errors import ConfigError


def prompt_ids(tokenizer: Any, prompt: str | Sequence[Message], chat: Chat | None = None) -> list[int]:
    """The token ids of a prompt, or of the turns of a conversation, exactly as the training examples begin.

    Raises: ConfigError for a prompt of no token at all, and for one with two beginnings; TaskDataError for turns that
    the chat template refuses.
    """
    chat = chat or Chat(tokenizer, "none")
    try:
        if isinstance(prompt, str) and not chat.applies:
            return TokenIds(tokenizer).prompt(prompt)
        turns = [Message("user", prompt.strip())] if isinstance(prompt, str) else prompt
        return TokenIds(tokenizer).before(chat.before(turns))
    except UnusableText as error:
        raise ConfigError(
            "prompt", got=str(error), allowed="a text with at least one token", remedy="write another prompt"
        ) from error


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Message]],
    *,
    chat: Chat | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """What ``model`` writes after each prompt, up to its end-of-text token, without the prompt.

    A prompt is a text, or the turns of a conversation; ``chat`` says how they become what the model reads, and with
    which token an answer ends.
    Prompts of one batch are padded on the left and masked. Temperature 0 is greedy decoding; above it, tokens are drawn
    with a generator that starts from ``seed``; the caller's is left alone.

    Settings that come with the model, in generation_config.json or in config.json (sampling, penalties, beams, lengths,
    caches), are not used: what is answered depends on the arguments alone. From there come only the tokens at which the
    base model ends, beside the one with which training ends every answer, which is the tokenizer's.

    Raises: ConfigError for a size below 1, and for prompts that leave no room within the model's positions.
    """
    for field, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(field, got=value, allowed="an integer >= 1", remedy="leave it at its default")
    if not 0 <= temperature < float("inf"):
        raise ConfigError("temperature", got=temperature, allowed="0 (greedy) or more", remedy="use 0")
    encoded = [prompt_ids(tokenizer, prompt, chat) for prompt in prompts]
    _check_lengths(model, encoded, max_new_tokens)
    pad, ends = padding_id(tokenizer), sorted({*_end_tokens(model, tokenizer), *(chat.ends if chat else ())})
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    device = next(model.parameters()).device
    texts: list[str] = []
    with _own_settings(model), _own_generator(device), torch.inference_mode(), prepared(model):
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(encoded), batch_size):
            ids, mask = _left_padded(encoded[start : start + batch_size], pad)
            output = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
            for row in output[:, ids.shape[1] :].tolist():
                stop = next((index for index, token in enumerate(row) if token in ends), len(row))
                texts.append(_continuation(tokenizer, encoded[len(texts)], row[:stop]))
    return texts


def _continuation(tokenizer: Any, prompt: list[int], written: list[int]) -> str:
    """What is written, as the continuation of its prompt: by itself it may lose the space that it begins with."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *written]))
    is_longer = whole.startswith(before)
    return str(whole[len(before) :] if is_longer else tokenizer.decode(written, skip_special_tokens=True))


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (batch, longest), int64."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Inside the block ``generate`` finds no settings on the model to fill its arguments up with."""
    holders = [part for part in model.modules() if "generation_config" in vars(part)]
    kept = [part.generation_config for part in holders]
    try:
        for part in holders:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, settings in zip(holders, kept, strict=True):
            part.generation_config = settings


def _own_generator(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The token that training ends every answer with, and those that the base model ends with.

    Raises: ConfigError where the model names one that is none.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, (list, tuple)) else [] if own is None else [own]
    if not all(type(token) is int and token >= 0 for token in ends):
        raise ConfigError(
            "eos_token_id of the base model",
            got=repr(own),
            allowed="a token's number, a list of such, or null",
            remedy="correct generation_config.json, or config.json, in the model folder",
        )
    return sorted({*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def _check_lengths(model: Any, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    room = limits_of(model.config).positions
    longest = max((len(row) for row in encoded), default=0)
    if room is not None and longest + max_new_tokens > room:
        raise ConfigError(
            "prompt",
            got=f"{longest} tokens, and {max_new_tokens} to be written",
            allowed=f"{room} tokens in all, which is what the model has positions for",
            remedy="shorten the prompt, or lower --max-new-tokens",
        )
