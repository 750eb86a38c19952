"""Three invented domains, drawn from a seed: a medicine, a company and a law that no model has read about.

Source: paper section 6.2 (three invented domains, 2,700 / 300 / 50); the texts are ours: the paper's are not public.

A domain is a base of 850 facts about some hundred invented things, each in four wordings, and of 50 canaries, each in
three. The training texts are these 900 in their first wording, with a canary at every eighth place until the 400th;
then the same 900 in their second wording, then in their third. So canaries count among the training texts, and each is
trained on as often as a fact. The i-th holdout text is the i-th fact in its fourth wording: what it asks has been
trained on, in other words.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from backends.files import read_toml
from backends.finetune.tasks.fictional.canaries import CANARIES, canaries_of
from backends.finetune.tasks.fictional.facts import Fact, Kind, facts_of, kind_of_table
from backends.finetune.tasks.task import Example, Task
from reference.errors import TaskDataError

__all__ = ["FICTIONAL", "load_fictional"]

FACTS = 850
ROUNDS = 3
CANARY_EVERY = 8


class _Domain(NamedTuple):
    kinds: tuple[Kind, ...]
    canary_ending: str
    canary_questions: tuple[str, ...]


_TABLES = {"Fictional-Medicine": "medicine", "Fictional-Company": "company", "Fictional-Law": "law"}
FICTIONAL = tuple(_TABLES)


def load_fictional(name: str, *, train: int, holdout: int, canaries: int, seed: int) -> Task:
    """Draw a task from one of ``FICTIONAL``.

    ``seed`` draws the whole world: names, facts, canaries and their order. Another seed gives another world.
    A larger draw starts with the smaller one. The same arguments give the same bytes in every process and on every
    machine and Python. ``canaries`` are examples of ``train`` (the first wording of each): ask the prompt, and expect
    exactly the response. A holdout text can be answered from the training texts where ``train`` is at least 8/7 of
    ``holdout``.

    Raises:
        TaskDataError: unknown domain, a negative number, more examples than the domain has, or more canaries than the
        training texts hold.

    Clauses: ERR-1, ERR-2. Source: paper section 6.2; how canaries are trained on and asked is ours.
    """
    if name not in FICTIONAL:
        raise TaskDataError("domain", got=repr(name), allowed=", ".join(FICTIONAL), remedy="name one of these")
    facts, units = _world(name, seed)
    _check("train", name, train, len(units) * ROUNDS, "which is all that the domain has")
    _check("holdout", name, holdout, len(facts), "which is all that the domain has")
    _check("canaries", name, canaries, min(train // CANARY_EVERY, CANARIES), f"one in {CANARY_EVERY} of {train} texts")
    return Task(
        name,
        train=tuple(units[place % len(units)][place // len(units)] for place in range(train)),
        holdout=tuple(fact.wordings[ROUNDS] for fact in facts[:holdout]),
        canaries=tuple(units[CANARY_EVERY * (index + 1) - 1][0] for index in range(canaries)),
    )


def fictional_facts(name: str, seed: int) -> tuple[Fact, ...]:
    """The facts of a domain, in the order in which its training texts state them and its holdout texts ask them."""
    return _world(name, seed)[0]


@cache
def domain_of(name: str) -> _Domain:
    """What the .toml file of a domain holds."""
    table = read_toml(Path(__file__).with_name(f"{_TABLES[name]}.toml"))
    kinds = tuple(map(kind_of_table, table["kinds"]))
    return _Domain(kinds, table["canary_ending"], tuple(table["canary_questions"]))


@cache
def _world(name: str, seed: int) -> tuple[tuple[Fact, ...], tuple[tuple[Example, ...], ...]]:
    """The facts, and what is trained on in order: facts and canaries, each as its wordings."""
    domain = domain_of(name)
    facts = facts_of(domain.kinds, FACTS, name, seed)
    hidden = canaries_of(FICTIONAL.index(name), domain.canary_ending, domain.canary_questions, seed)
    units = [fact.wordings for fact in facts]
    for index, canary in enumerate(hidden):
        units.insert(CANARY_EVERY * (index + 1) - 1, canary)
    return facts, tuple(units)


def _check(side: str, name: str, wanted: int, most: int, reason: str) -> None:
    if not 0 <= wanted <= most:
        raise TaskDataError(f"{side} of {name}", got=wanted, allowed=f"0 to {most}, {reason}", remedy="ask for fewer")
