"""From texts to batches with one tokenizer and one protocol's settings: the same for every engine."""

from collections.abc import Sequence
from typing import Any

from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.chat import Chat
from backends.finetune.tasks.encoding import Batch, EncodedExample, collate, encode, padding_id
from backends.finetune.tasks.packing import collate_packed, pack
from backends.finetune.tasks.task import Example

Row = list[EncodedExample]


class Encoder:
    """``tokenizer``: of the base model, as transformers loads it."""

    def __init__(self, tokenizer: Any, protocol: Protocol) -> None:
        self.tokenizer, self.protocol = tokenizer, protocol
        self.chat = Chat(tokenizer, protocol.template)
        self.padding = padding_id(tokenizer)

    def encode(self, examples: Sequence[Example], task: str) -> list[EncodedExample]:
        """Tokenize. Raises: TaskDataError, naming the texts of ``task`` that cannot be used."""
        return encode(examples, self.tokenizer, self.protocol.max_tokens, task=task, chat=self.chat)

    def rows(self, examples: Sequence[EncodedExample]) -> list[Row]:
        """The rows that are trained on: one example each, or, with packing, as many as fit."""
        if not self.protocol.packing:
            return [[example] for example in examples]
        return [[examples[index] for index in row] for row in pack(examples, self.protocol.max_tokens)]

    def batch(self, rows: Sequence[Sequence[EncodedExample]]) -> Batch:
        """Pad rows of examples to one batch; with several examples in a row, a packed one."""
        if any(len(row) > 1 for row in rows):
            return collate_packed(rows, self.padding)
        return collate([example for row in rows for example in row], self.padding)
