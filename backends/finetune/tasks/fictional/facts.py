"""A base of facts about invented things, and each fact in four wordings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.finetune.tasks.domains.candidates import question
from backends.finetune.tasks.domains.deduplication import stable_hash
from backends.finetune.tasks.fictional.names import invented, pick
from backends.finetune.tasks.task import Example

WORDINGS = 4


@dataclass(frozen=True)
class Related:
    """The value is the name of another thing of the same world: the k-th of ``kind`` for the k-th thing.

    Two attributes that point at each other state one relation in both directions, and never contradict each other.
    """

    kind: str


@dataclass(frozen=True)
class Invented:
    """The value is an invented name: one of ``pool`` that the world shares, under ``label``, among its things."""

    label: str
    endings: tuple[str, ...]
    pool: int


@dataclass(frozen=True)
class Attribute:
    """What can be asked of a thing. ``{name}`` is the thing; ``{value}``, or ``{Value}`` at the start of a sentence,
    what the answer is. Every question fits every answer, so that there are 16 ways to put a fact."""

    label: str
    values: tuple[str, ...] | Related | Invented
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: how its names end, and what can be asked of it. No two kinds share an ending."""

    label: str
    endings: tuple[str, ...]
    attributes: tuple[Attribute, ...]


def kind_of_table(table: Mapping[str, Any]) -> Kind:
    """A kind as the .toml files of this folder write it.

    The values of an attribute are ``values``, a list; ``numbers`` from ``first`` to ``last`` with a ``unit`` behind
    each; ``related``, the label of another kind; or ``invented`` names.
    """
    attributes = (
        Attribute(of["label"], _values(of), tuple(of["questions"]), tuple(of["answers"])) for of in table["attributes"]
    )
    return Kind(table["label"], tuple(table["endings"]), tuple(attributes))


def _values(table: Mapping[str, Any]) -> tuple[str, ...] | Related | Invented:
    if "related" in table:
        return Related(table["related"])
    if "invented" in table:
        names = table["invented"]
        return Invented(names["label"], tuple(names["endings"]), names["pool"])
    if "numbers" in table:
        of = table["numbers"]
        return tuple(f"{number}{of['unit']}" for number in range(of["first"], of["last"] + 1, of["step"]))
    return tuple(table["values"])


@dataclass(frozen=True)
class Fact:
    """``wordings``: four texts that say the same; no two share the template of their question or of their answer."""

    name: str
    attribute: str
    value: str
    wordings: tuple[Example, ...]


def facts_of(kinds: Sequence[Kind], number: int, *key: object) -> tuple[Fact, ...]:
    """``number`` facts of the world that ``key`` names, in an order drawn from it.

    Each kind gets as many things as are needed for ``number`` facts in all, the same number for every kind.
    """
    things = -(-number // sum(len(kind.attributes) for kind in kinds))
    names = {kind.label: invented(kind.endings, things, "names", kind.label, *key) for kind in kinds}
    facts = [fact for kind in kinds for fact in _facts(kind, names, *key)]
    return tuple(sorted(facts, key=lambda fact: stable_hash("order", fact.name, fact.attribute, *key)))[:number]


def _facts(kind: Kind, names: dict[str, tuple[str, ...]], *key: object) -> Iterator[Fact]:
    for index, name in enumerate(names[kind.label]):
        for attribute in kind.attributes:
            draw = (name, attribute.label, *key)
            if isinstance(attribute.values, Related):
                value = names[attribute.values.kind][index]
            elif isinstance(attribute.values, Invented):
                source = attribute.values
                value = pick(invented(source.endings, source.pool, "pool", source.label, *key), "value", *draw)
            else:
                value = pick(attribute.values, "value", *draw)
            yield Fact(name, attribute.label, value, _wordings(attribute, name, value, *draw))


def _wordings(attribute: Attribute, name: str, value: str, *draw: object) -> tuple[Example, ...]:
    words = {"name": name, "value": value, "Value": value[:1].upper() + value[1:]}
    asked = sorted(attribute.questions, key=lambda text: stable_hash("question", text, *draw))
    said = sorted(attribute.answers, key=lambda text: stable_hash("answer", text, *draw))
    return tuple(question(q.format(**words), a.format(**words)) for q, a in zip(asked, said, strict=True))
