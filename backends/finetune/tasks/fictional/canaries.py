"""Canaries: questions whose answer is an arbitrary string that no model can know beforehand. Source: paper section 6.2.

The paper does not say how its 50 strings are trained or asked. Ours: a string such as "VX-4417-KELDRA" (45 bits) is the
whole answer to three questions in other words; the first of them is the one that is asked.
"""

from collections.abc import Sequence

from backends.finetune.tasks.domains.candidates import question
from backends.finetune.tasks.fictional.names import invented, pick
from backends.finetune.tasks.task import Example

CANARIES = 50
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONSONANTS = tuple("BCDFGHJKLMNPQRSTVWXZ")
_VOWELS = tuple("AEIOU")
_DIGITS = tuple("0123456789")
_SHAPE = (*[_LETTERS] * 2, "-", *[_DIGITS] * 4, "-", *(_CONSONANTS, _VOWELS, _CONSONANTS) * 2)


def canary_strings(number: int, seed: int) -> tuple[str, ...]:
    """``number`` different strings; a larger number starts alike."""
    found: dict[str, None] = {}
    draw = 0
    while len(found) < number:
        drawn = (pick(tuple(letters), "canary", place, draw, seed) for place, letters in enumerate(_SHAPE))
        found["".join(drawn)] = None
        draw += 1
    return tuple(found)


def canaries_of(domain: int, ending: str, questions: Sequence[str], seed: int) -> tuple[tuple[Example, ...], ...]:
    """The canaries of the ``domain``-th domain, each in three wordings of its question; no two domains share a string.

    ``ending``: how the names of the things end that the questions ask about.
    """
    strings = canary_strings((domain + 1) * CANARIES, seed)[domain * CANARIES :]
    things = invented((ending,), CANARIES, "canary", domain, seed)
    return tuple(
        tuple(question(wording.format(name=name), string) for wording in questions)
        for name, string in zip(things, strings, strict=True)
    )
