"""A conversation as a model reads it: its chat template, and which parts of the text are learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

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
        template: "auto", the tokenizer's own chat template if it has one, and else turns with SEPARATOR between them;
            "none", the same for conversations, and prompts with their responses as they are; or a template in Jinja.

    Attributes:
        applies: whether a prompt and its response are a conversation, too.

    Raises: TaskDataError for a template that fails on a question and its answer.
    """

    def __init__(self, tokenizer: Any, template: Literal["auto", "none"] | str = "auto") -> None:
        self.applies = template != "none"
        self._tokenizer = tokenizer
        self._template: str | None = None
        if template == "auto":
            self._template = getattr(tokenizer, "chat_template", None)
        elif template != "none":
            self._template = template
        self._marks: set[str] = set()
        if self._template is not None:
            added = tokenizer.added_tokens_decoder.values()
            self._marks |= {str(mark) for mark in tokenizer.all_special_tokens if mark}
            self._marks |= {token.content for token in added if token.special}
            said = [[Message("user", asked), Message("assistant", reply)] for asked, reply in ("ab", "ac", "db")]
            first, *others = ("".join(piece.text for piece in self.pieces(turns, "chat template")) for turns in said)
            for other, what in zip(others, ("answer", "question"), strict=True):
                if other == first:
                    raise _left_out("chat template", f"the {what}")

    @property
    def template(self) -> str | None:
        """The template in Jinja, if there is one."""
        return self._template

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def ends(self) -> list[int]:
        """The token that ends an answer by this template, which may be another than the tokenizer's end-of-text."""
        if self._template is None:
            return []
        answer = self.pieces([Message("user", "a"), Message("assistant", "b")], "chat template")[-1].text
        return self._tokenizer(answer, add_special_tokens=False)["input_ids"][-1:] if self.ends_turn(answer) else []

    def before(self, messages: Sequence[Message], where: str = "prompt") -> list[str]:
        """What stands before the assistant's next answer, in the pieces in which training tokenizes it."""
        if self._template is None:
            return [piece.text for piece in _plain([*messages, Message("assistant", "")]) if piece.text]
        for message in messages:
            self._refuse_marks(message, where)
        whole = self._rendered(messages, where, answering=True)
        last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
        texts = [piece.text for piece in self.pieces(messages[: last + 1], where)] if last >= 0 else []
        done = "".join(texts)
        return [*texts, whole[len(done) :]] if whole.startswith(done) else [whole]

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
            answer = behind[len(before) :]
            # line breaks behind the end of a turn belong to the next
            end = len(before) + (len(answer.rstrip()) if self.ends_turn(answer) else len(answer))
            pieces += [Piece(whole[done : len(before)], False), Piece(whole[len(before) : end], True)]
            done = end
        return pieces

    def ends_turn(self, answer: str) -> bool:
        """Whether an answer, as the template writes it, brings a special token that ends it."""
        return self._template is not None and any(answer.rstrip().endswith(mark) for mark in self._marks)

    def _rendered(self, messages: Sequence[Message], where: str, *, answering: bool = False) -> str:
        turns = [message._asdict() for message in messages]
        try:
            text = str(
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
        if any(message.role == "system" and message.content.strip() not in text for message in messages):
            raise _left_out(where, "the system turn")
        return text

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


def _left_out(where: str, what: str) -> TaskDataError:
    return TaskDataError(
        where,
        got=f"a chat template that leaves out {what}",
        allowed="a template that writes every turn",
        remedy='take another template ("none", or a file), or take such turns out of the data',
    )


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
