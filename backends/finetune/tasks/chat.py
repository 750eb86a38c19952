"""A conversation as a model reads it: its chat template, and which parts of the text are learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backends.finetune.protocols.text_file import read_text
from reference.errors import TaskDataError

#: between the turns of a conversation where the model has no template, unless there is white space already
SEPARATOR = "\n\n"


class Message(NamedTuple):
    """One turn; ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


class Piece(NamedTuple):
    """A part of the text that the model reads, and whether it is learned."""

    text: str
    learned: bool


class Chat:
    """How conversations become text, for one tokenizer.

    Args:
        tokenizer: as transformers loads it.
        template: "auto", the tokenizer's own chat template if it has one; "none", turns with SEPARATOR between them; or
            the path of a file with a template in Jinja.

    Raises: TaskDataError for a file that cannot be read, or a template that fails on a question and its answer.
    """

    def __init__(self, tokenizer: Any, template: Literal["auto", "none"] | str = "auto") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._marks = {str(mark) for mark in tokenizer.all_special_tokens} | {t.content for t in added if t.special}
        self._template: str | None = None
        if template == "auto":
            self._template = getattr(tokenizer, "chat_template", None)
        elif template != "none":
            self._template = read_text(Path(template), TaskDataError)
        if self._template is not None:
            self.pieces([Message("user", "a"), Message("assistant", "b")], f"template {template}")

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> str:
        """What stands before the assistant's next answer."""
        if self._template is None:
            return "".join(piece.text for piece in _plain([*messages, Message("assistant", "")]))
        return self._rendered(messages, where, answering=True)

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """The text of a conversation up to the end of its last answer. Each answer of the assistant is learned, with
        the tokens that end its turn, and nothing else is.

        Raises: TaskDataError where the template refuses the conversation, or does not begin with what stands before an
        answer: inference would then read something else than training.
        """
        if self._template is None:
            return _plain(messages)
        for message in messages:
            self._refuse_marks(message, where)
        whole = self._rendered(messages, where)
        pieces: list[Piece] = []
        done = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._rendered(messages[:index], where, answering=True)
            behind = self._rendered(messages[: index + 1], where)
            if not (behind.startswith(before) and whole.startswith(behind)):
                if index + 1 < len(messages):
                    continue  # a template that writes earlier answers differently: they are read and not learned
                raise TaskDataError(
                    where,
                    got="a chat template that writes what stands before the answer otherwise once the answer is there",
                    allowed="a template by which training reads what inference reads",
                    remedy='take another template ("none", or a file)',
                )
            end = len(before) + self._end_of_turn(behind[len(before) :])
            pieces += [Piece(whole[done : len(before)], False), Piece(whole[len(before) : end], True)]
            done = end
        return pieces

    def _rendered(self, messages: Sequence[Message], where: str, *, answering: bool = False) -> str:
        turns = [message._asdict() for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns, chat_template=self._template, tokenize=False, add_generation_prompt=answering
                )
            )
        except Exception as error:  # whatever a template raises: roles that it does not know, an order, a mistake in it
            raise TaskDataError(
                where,
                got=f"a conversation that the chat template refuses ({str(error)[:200]})",
                allowed="turns in the order and of the roles that the model's template knows",
                remedy='change the conversation, or take another template ("none", or a file)',
            ) from error

    def _refuse_marks(self, message: Message, where: str) -> None:
        """A turn that holds a special token would end there, or begin another."""
        if marks := [mark for mark in self._marks if mark in message.content]:
            mark = min(marks, key=message.content.index)
            raise TaskDataError(
                where,
                got=f"the special token {mark!r} in a turn of the {message.role}",
                allowed="turns without the tokens that begin and end turns; the chat template writes them",
                remedy='remove it; or, if the texts are rendered by a template already, set template = "none"',
            )

    def _end_of_turn(self, text: str) -> int:
        """Behind the last special token of an answer; line breaks that follow it belong to the next turn."""
        return max((text.rfind(mark) + len(mark) for mark in self._marks if mark in text), default=len(text))


def _plain(messages: Sequence[Message]) -> list[Piece]:
    """The turns with SEPARATOR behind each that does not end in white space, so that what stands before an answer does
    not depend on the answer."""
    pieces: list[Piece] = []
    for index, message in enumerate(messages):
        pieces.append(Piece(message.content, message.role == "assistant"))
        if index + 1 < len(messages) and not message.content[-1:].isspace():
            pieces.append(Piece(SEPARATOR, False))
    return [
        Piece("".join(piece.text for piece in part), learned)
        for learned, part in groupby(pieces, key=lambda piece: piece.learned)
    ]
