"""What a domain offers, before near duplicates are removed."""

from __future__ import annotations

from typing import NamedTuple

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


def fits(example: Example, longest: int = LONGEST) -> bool:
    """Whether the whole text is neither too short to measure nor too long to train on quickly."""
    return SHORTEST <= len(example.prompt) + len(example.response) <= longest
