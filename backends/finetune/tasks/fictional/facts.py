"""A base of facts about invented things, and each fact in four wordings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from backends.files import parse_toml
from backends.finetune.tasks.domains.candidates import question
from backends.finetune.tasks.domains.deduplication import stable_hash
from backends.finetune.tasks.fictional.names import invented, pick
from backends.finetune.tasks.task import Example

WORDINGS = 4


def _written_out(values: Any) -> Any:
    """All values, where the file has a pattern: filled with each integer from first to last, or in all ways."""
    if not isinstance(values, dict) or "text" not in values:
        return values
    each = values.get("each") or [range(values["first"], values["last"] + 1, values.get("step", 1))]
    return tuple(values["text"].format(*words) for words in product(*each))


@dataclass(frozen=True)
class Related:
    """The value is the name of another thing of the same world: the k-th of ``kind`` for the k-th thing.

    Two attributes that point at each other state one relation in both directions, and never contradict each other.
    """

    kind: str


@dataclass(frozen=True)
class Invented:
    """The value is an invented name: one of the ``pool`` of that label, which the world shares among its things."""

    pool: str


@dataclass(frozen=True)
class Pool:
    """How its names end, and how many there are."""

    endings: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Attribute:
    """What can be asked of a thing. ``{name}`` is the thing; ``{value}``, or ``{Value}`` at the start of a sentence,
    what the answer is. Every question fits every answer, so that there are 16 ways to put a fact."""

    label: str
    values: Annotated[tuple[str, ...] | Related | Invented, BeforeValidator(_written_out)]
    questions: tuple[str, str, str, str]
    answers: tuple[str, str, str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: how its names end, and what can be asked of it. No two kinds share an ending."""

    label: str
    endings: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class Canaries:
    """How the names of the things end that canaries ask about, and the three wordings of the question."""

    ending: str
    questions: tuple[str, str, str]


@dataclass(frozen=True)
class Domain:
    """What a world is drawn from. ``pools``: by label."""

    canaries: Canaries
    pools: dict[str, Pool]
    kinds: tuple[Kind, ...]


def read_domain(path: Path) -> Domain:
    """The words of a domain, from a TOML file with the fields of :class:`Domain`."""
    return TypeAdapter(Domain).validate_python(parse_toml(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Fact:
    """``wordings``: four texts that say the same; no two share the template of their question or of their answer."""

    name: str
    attribute: str
    value: str
    wordings: tuple[Example, ...]


def facts_of(domain: Domain, number: int, *key: object) -> tuple[Fact, ...]:
    """``number`` facts of the world that ``key`` names, in an order drawn from it.

    Each kind gets as many things as are needed for ``number`` facts in all, the same number for every kind.
    """
    kinds = domain.kinds
    things = -(-number // sum(len(kind.attributes) for kind in kinds))
    names = {kind.label: invented(kind.endings, things, "names", kind.label, *key) for kind in kinds}
    pools = {label: invented(pool.endings, pool.size, "pool", label, *key) for label, pool in domain.pools.items()}
    facts = [fact for kind in kinds for fact in _facts(kind, names, pools, *key)]
    return tuple(sorted(facts, key=lambda fact: stable_hash("order", fact.name, fact.attribute, *key)))[:number]


def _facts(
    kind: Kind, names: dict[str, tuple[str, ...]], pools: dict[str, tuple[str, ...]], *key: object
) -> Iterator[Fact]:
    for index, name in enumerate(names[kind.label]):
        for attribute in kind.attributes:
            draw, values = (name, attribute.label, *key), attribute.values
            if isinstance(values, Related):
                value = names[values.kind][index]
            else:
                value = pick(pools[values.pool] if isinstance(values, Invented) else values, "value", *draw)
            yield Fact(name, attribute.label, value, _wordings(attribute, name, value, *draw))


def _wordings(attribute: Attribute, name: str, value: str, *draw: object) -> tuple[Example, ...]:
    words = {"name": name, "value": value, "Value": value[:1].upper() + value[1:]}
    asked = sorted(attribute.questions, key=lambda text: stable_hash("question", text, *draw))
    said = sorted(attribute.answers, key=lambda text: stable_hash("answer", text, *draw))
    return tuple(question(q.format(**words), a.format(**words)) for q, a in zip(asked, said, strict=True))
