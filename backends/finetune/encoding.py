"""From examples to batches of token ids: labels on the answer only, order a function of (seed, phase, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.finetune.tasks import Example
from reference.errors import TaskDataError

IGNORED = -100  # the label that no loss counts
WINDOW = 8  # batches


@dataclass(frozen=True)
class EncodedExample:
    """Token ids; the first ``answer_start`` of them are the prompt, which is read but not learned."""

    ids: tuple[int, ...]
    answer_start: int


def encode(examples: Sequence[Example], tokenizer: Any, max_tokens: int, *, task: str) -> list[EncodedExample]:
    """Tokenize prompt + response + end-of-text, cut at ``max_tokens``.

    A tokenizer that puts a beginning-of-text token before every text (Llama, Mistral, Gemma) puts it here too; plain
    text gets one in any case, so that its first token is predicted from something.

    Raises: TaskDataError if the prompt leaves no room for an answer.
    """
    encoded = []
    beginning = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begins_every_text = tokenizer("a")["input_ids"][:1] == beginning
    for index, example in enumerate(examples):
        prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"] if example.prompt else []
        if begins_every_text or not prompt:
            prompt = [*beginning, *prompt]
        response = tokenizer(example.response, add_special_tokens=False)["input_ids"]
        ids = [*prompt, *response, *end][:max_tokens]
        if len(ids) <= max(len(prompt), 1):
            raise TaskDataError(
                f"task {task}, example {index + 1}",
                got=f"a prompt of {len(prompt)} tokens and a response of {len(response)}",
                allowed=f"prompt and response within max_tokens = {max_tokens}, the response not empty",
                remedy="shorten the prompt, or raise max_tokens in the protocol",
            )
        encoded.append(EncodedExample(tuple(ids), max(len(prompt), 1)))
    return encoded


Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Right-padded arrays of shape (rows, longest), int64; ``attention_mask`` is 1 on tokens and 0 on padding,
    ``labels`` hold IGNORED where no loss is counted. With ``position_ids``, which restart in each example, the batch
    is packed.
    """

    input_ids: Integers
    attention_mask: Integers
    labels: Integers
    position_ids: Integers | None = None

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def answer_tokens(self) -> int:
        """Tokens that the loss counts; the first of a row is predicted from nothing."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def rows(self, indices: Sequence[int]) -> Batch:
        """Some of the rows."""
        chosen = list(indices)
        positions = None if self.position_ids is None else self.position_ids[chosen]
        return Batch(self.input_ids[chosen], self.attention_mask[chosen], self.labels[chosen], positions)


def collate(examples: Sequence[EncodedExample], pad_id: int) -> Batch:
    """Pad on the right to the longest example."""
    shape = (len(examples), max(len(example.ids) for example in examples))
    input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
    mask = np.zeros(shape, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example.ids)
        input_ids[row, :length] = example.ids
        mask[row, :length] = 1
        labels[row, example.answer_start : length] = example.ids[example.answer_start :]
    return Batch(input_ids, mask, labels)


def padding_id(tokenizer: Any) -> int:
    """The token to pad with; which one does not matter, since padding is masked."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)


def training_order(lengths: Sequence[int], batch_size: int, epochs: int, *, seed: int, phase: int) -> list[list[int]]:
    """Indices of each batch of a phase, of rows with these ``lengths`` in tokens.

    Stateless, so that a resumed run needs no position in a generator. Each epoch shuffles the rows, puts those of about
    one length from each window of ``WINDOW`` batches into one batch, for little padding, and shuffles the batches.
    """
    batches = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, phase, epoch])
        order = rng.permutation(len(lengths)).tolist()
        of_epoch = []
        for start in range(0, len(order), WINDOW * batch_size):
            window = sorted(order[start : start + WINDOW * batch_size], key=lambda index: lengths[index])
            of_epoch += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        batches += [of_epoch[index] for index in rng.permutation(len(of_epoch))]
    return batches


def evaluation_order(examples: Sequence[EncodedExample], batch_size: int) -> list[list[int]]:
    """Indices by length, so that little is padded."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
