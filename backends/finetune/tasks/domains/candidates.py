"""What a domain offers, before near duplicates are removed."""

from collections.abc import Iterator
from typing import NamedTuple

from backends.finetune.tasks.domains.prose import passages
from backends.finetune.tasks.task import Example

#: characters of prompt and response together; about 40 to 110 tokens
SHORTEST, LONGEST = 180, 420


class Candidate(NamedTuple):
    """``document`` is what the example was cut from: all examples of a document land on one side of the split."""

    document: str
    example: Example


def question(text: str, answer: str) -> Example:
    """The form that all five domains share. The response starts with the blank that follows "Answer:"."""
    return Example(f"Question: {text}\nAnswer:", f" {answer}")


def answers(asked: str, text: str, rejected: str = r"$^") -> Iterator[Example]:
    """The passages of ``text`` with which the question has a fitting length; ``rejected``: see :func:`passages`."""
    room = len(question(asked, "").prompt) + 1
    return (question(asked, passage) for passage in passages(text, SHORTEST - room, LONGEST - room, rejected))


def fits(example: Example, longest: int = LONGEST) -> bool:
    """Whether the whole text is neither too short to measure nor too long to train on quickly."""
    return SHORTEST <= len(example.prompt) + len(example.response) <= longest
