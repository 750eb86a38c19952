"""From examples to batches of token ids: labels on the answer only, order a function of (seed, phase, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from backends.finetune.tasks.chat import Chat, Message
from backends.finetune.tasks.task import Example, listed
from backends.finetune.tasks.token_ids import TokenIds, UnusableText
from reference.errors import TaskDataError

IGNORED = -100  # the label that no loss counts
#: tokens that are measured together even where a training step has fewer: without gradients they take less memory
MEASURED_TOGETHER = 2048
#: of them at most so many logits at once, where a training step has fewer: half a gibibyte in float32
LOGITS_TOGETHER = 2**27
WINDOW = 8  # batches


@dataclass(frozen=True)
class EncodedExample:
    """Token ids; the first ``answer_start`` of them are the prompt, which is read but not learned. ``read``: later
    stretches [start, stop) that are not learned either: what others say in a conversation. ``cut``: tokens that
    ``max_tokens`` left out. ``split``: see :class:`backends.finetune.tasks.token_ids.Ids`."""

    ids: tuple[int, ...]
    answer_start: int
    cut: int = 0
    split: bool = False
    read: tuple[tuple[int, int], ...] = ()

    @property
    def labels(self) -> list[int]:
        """The ids that are learned, and IGNORED in place of the others."""
        labels = [IGNORED] * self.answer_start + list(self.ids[self.answer_start :])
        for start, stop in self.read:
            labels[start:stop] = [IGNORED] * (min(stop, len(labels)) - start)
        return labels


def encode(
    examples: Sequence[Example], tokenizer: Any, max_tokens: int, *, task: str, chat: Chat | None = None
) -> list[EncodedExample]:
    """Tokenize prompt + response + end-of-text as :class:`backends.finetune.tasks.token_ids.TokenIds` does, and cut at
    ``max_tokens``. What is cut loses its end-of-text token with the rest: it does not end there. With ``chat``, prompts
    with their responses are conversations, too.

    Raises: TaskDataError that lists every example whose prompt leaves no room for an answer, or that has none, or names
    one that the chat template refuses.
    """
    token_ids, encoded, unusable = TokenIds(tokenizer), [], []
    for index, example in enumerate(examples):
        number = f"example {index + 1}"
        messages = example.conversation if chat is not None and (chat.applies or example.messages) else ()
        try:
            if chat is not None and messages:
                whole = _conversation(token_ids, chat, messages, example.place or f"task {task}, {number}")
            else:
                prompt, answer, split = token_ids.example(example.prompt, example.response)
                whole = EncodedExample((*prompt, *answer), max(len(prompt), 1), split=split)
        except UnusableText as error:
            unusable.append((str(error), str(error), number, example.place))
            continue
        length, start = len(whole.ids), whole.answer_start
        if min(length, max_tokens) <= start:
            got = f"a prompt of {start} tokens and a response of {length - start}, its end included"
            unusable.append((got, f"a prompt that leaves no room within {max_tokens} tokens", number, example.place))
            continue
        encoded.append(replace(whole, ids=whole.ids[:max_tokens], cut=max(0, length - max_tokens)))
    if unusable:
        raise _unusable(unusable, len(examples), max_tokens, task)
    return encoded


def _conversation(token_ids: TokenIds, chat: Chat, messages: Sequence[Message], where: str) -> EncodedExample:
    pieces = chat.pieces(messages, where)
    parts, split = token_ids.conversation([piece.text for piece in pieces], ended=chat.ends_turn(pieces[-1].text))
    ends = list(accumulate(len(part) for part in parts))
    stretches = [
        (stop - len(part), stop) for part, stop, piece in zip(parts, ends, pieces, strict=True) if not piece.learned
    ]
    start = stretches.pop(0)[1] if stretches and stretches[0][0] == 0 else 0
    ids = tuple(token for part in parts for token in part)
    return EncodedExample(ids, max(start, 1), split=split, read=tuple(stretches))


def _unusable(texts: Sequence[tuple[str, str, str, str]], of: int, max_tokens: int, task: str) -> TaskDataError:
    """``texts``: per text what is wrong with it, the same without figures, its number, and its file and line."""
    got, _, place, line = texts[0]
    place += f" ({line})" if line else ""
    if len(texts) > 1:
        kinds = dict.fromkeys(kind for _, kind, _, _ in texts)
        got = "; ".join(f"{kind}: {listed([t[3] or t[2] for t in texts if t[1] == kind])}" for kind in kinds)
        place = f"{len(texts)} of {of} texts"
    return TaskDataError(
        f"task {task}, {place}",
        got=got,
        allowed=f"prompt and at least a token of the response within max_tokens = {max_tokens}",
        remedy="shorten the prompt, take the text out, or raise max_tokens in the protocol",
    )


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

    @property
    def later_tokens(self) -> Integers:
        """1 on every token but the first of each text, 0 there and on padding: what a moment is taken of (DATA-1)."""
        first = np.zeros_like(self.attention_mask) if self.position_ids is None else self.position_ids == 0
        if self.position_ids is None:
            first[:, 0] = 1
        return self.attention_mask * (1 - first)

    def rows(self, indices: Sequence[int]) -> Batch:
        """Some of the rows."""
        chosen = list(indices)
        positions = None if self.position_ids is None else self.position_ids[chosen]
        return Batch(self.input_ids[chosen], self.attention_mask[chosen], self.labels[chosen], positions)

    def parts(self, rows: int) -> Iterator[Batch]:
        """All rows, so many at a time."""
        every = range(len(self.labels))
        return (self.rows(every[first : first + rows]) for first in every[::rows])


def collate(examples: Sequence[EncodedExample], pad_id: int) -> Batch:
    """Pad on the right to the longest example."""
    shape = (len(examples), max(len(example.ids) for example in examples))
    input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
    mask = np.zeros(shape, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example.ids)
        input_ids[row, :length] = example.ids
        mask[row, :length] = 1
        labels[row, :length] = example.labels
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


def rows_measured(batch_size: int, max_tokens: int) -> int:
    """How many texts are measured together."""
    return max(batch_size, MEASURED_TOGETHER // max_tokens)


def rows_scored(batch_size: int, answers_of_row: int, vocabulary: int) -> int:
    """How many rows of such a batch, with at most so many answer tokens each, get their logits at once."""
    return max(batch_size, LOGITS_TOGETHER // max(1, answers_of_row * vocabulary))


def evaluation_order(examples: Sequence[EncodedExample], batch_size: int, max_tokens: int) -> list[list[int]]:
    """Indices by length, so that little is padded, in batches of ``batch_size`` or of MEASURED_TOGETHER tokens."""
    rows = rows_measured(batch_size, max_tokens)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    return [order[start : start + rows] for start in range(0, len(order), rows)]
