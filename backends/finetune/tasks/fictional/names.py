"""Invented names: pronounceable syllables drawn by a hash; a seed gives the same names everywhere."""

from collections.abc import Iterator
from itertools import count, islice
from typing import TypeVar

from backends.finetune.tasks.domains.deduplication import stable_hash

_Value = TypeVar("_Value")


ONSETS, VOWELS, CODAS = (
    tuple(letters.split())
    for letters in (
        "b br c d dr f fl g gr h j k kl l m n p pr qu r s sk st t th tr v w y z",
        "a e i o u ae ei ou",
        "l lm ln m n nd r rk rn s sk th v x",
    )
)


def pick(options: tuple[_Value, ...], *key: object) -> _Value:
    """One of ``options``, as the hash of ``key`` says."""
    return options[int.from_bytes(stable_hash("pick", *key)[:8], "big") % len(options)]


def invented(endings: tuple[str, ...], number: int, *key: object) -> tuple[str, ...]:
    """``number`` different names: two syllables and one of ``endings`` each. A larger number starts alike."""
    return tuple(islice(_different(endings, *key), number))


def stem(*key: object) -> str:
    """Two syllables, the first letter a capital."""
    parts = (ONSETS, VOWELS, CODAS, ONSETS, VOWELS)
    return "".join(pick(part, "stem", place, *key) for place, part in enumerate(parts)).capitalize()


def _different(endings: tuple[str, ...], *key: object) -> Iterator[str]:
    seen: set[str] = set()
    for draw in count():
        name = stem(draw, *key)
        if name not in seen:
            seen.add(name)
            yield name + pick(endings, "ending", draw, *key)
