"""Five domains of real text, read at run time from installed packages: no data set is stored or downloaded.

Source: ours; the paper's five domains are named alike but its texts are not public.
"""

from functools import cache

from backends.finetune.tasks.domains import code, financial, legal, medical, science
from backends.finetune.tasks.domains.candidates import Candidate
from backends.finetune.tasks.domains.deduplication import split_pool, stable_hash
from backends.finetune.tasks.task import Example, Task
from reference.errors import TaskDataError

__all__ = ["DOMAINS", "domain_pool", "load_domain"]

_SOURCES = {"Medical": medical, "Legal": legal, "Financial": financial, "Code": code, "Science": science}
DOMAINS = tuple(_SOURCES)


def load_domain(name: str, *, train: int, holdout: int, seed: int) -> Task:
    """Draw a task from one of ``DOMAINS``.

    The pool, and which of its documents are held out, depend on the domain alone; ``seed`` chooses and orders the
    ``train`` and ``holdout`` examples drawn from the two sides. A larger draw starts with the smaller one. The same
    arguments give the same task in every process and on every machine with the pinned packages; the Code domain
    reads the running Python's standard library, so there the Python version counts as well.

    Raises:
        TaskDataError: unknown domain, a negative number, or more examples than the domain has.
        MissingPackageError: the domain's package is not installed in the pinned version.

    Clauses: ERR-1, ERR-2.
    """
    if name not in _SOURCES:
        raise TaskDataError("domain", got=repr(name), allowed=", ".join(DOMAINS), remedy="name one of these")
    sides = domain_pool(name)
    for side, wanted, pool in zip(("train", "holdout"), (train, holdout), sides, strict=True):
        if not 0 <= wanted <= len(pool):
            raise TaskDataError(
                f"{side} examples of {name}",
                got=wanted,
                allowed=f"0 to {len(pool)}, which is all that the domain has",
                remedy="ask for fewer",
            )
    return Task(name, _draw(sides[0], train, seed), _draw(sides[1], holdout, seed))


@cache
def domain_pool(name: str) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """All examples of a domain that may be trained on, and all that may be held out, with their documents."""
    train, holdout = split_pool(_SOURCES[name].candidates())
    return tuple(train), tuple(holdout)


def _draw(pool: tuple[Candidate, ...], count: int, seed: int) -> tuple[Example, ...]:
    shuffled = sorted(pool, key=lambda item: stable_hash("draw", seed, item.example.prompt, item.example.response))
    return tuple(item.example for item in shuffled[:count])
