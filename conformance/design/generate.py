"""``python -m conformance.design.generate``: make the table of layouts anew, or ``--check`` the stored one.

All pairs of classes come from allpairspy. Within its class each value is taken in turn, and rows are added until every
value of every axis has occurred. Clauses: CONF-10.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Any

from conformance.design.axes import ADAPTER, HIDES_OTHERS, PROJECTION, Axis, adapter_fits, feasible, projection_fits
from conformance.design.layouts import FILE

Fits = Callable[[dict[str, Any]], bool]
#: axes, and what fits together
TABLES: dict[str, tuple[tuple[Axis, ...], Fits]] = {
    "projection": (PROJECTION, projection_fits),
    "adapter": (ADAPTER, adapter_fits),
}


def covering_rows(axes: tuple[Axis, ...], fits: Fits) -> list[list[Any]]:
    """Rows of values, one per axis: every pair of classes that fits together, and every value of every axis.

    Both where a fault shows (see ``HIDES_OTHERS``).
    """
    from allpairspy import AllPairs

    seen = [[label for label in axis.classes if label != HIDES_OTHERS.get(axis.name)] for axis in axes]
    pairs = AllPairs(seen, filter_func=lambda labels: feasible(axes, labels, fits))
    chosen = [list(labels) for labels in pairs]
    chosen += _missing_pairs(axes, seen, chosen, fits)
    used: Counter[tuple[str, Any]] = Counter()
    hidden: Counter[tuple[str, Any]] = Counter()  # what occurred where no fault shows has yet to occur elsewhere
    table = [_filled(axes, labels, fits, used) for labels in chosen]
    for hiding in [axis for axis in axes if axis.name in HIDES_OTHERS]:
        table += [_filled(axes, labels, fits, hidden) for labels in _with_each_class(axes, hiding, fits)]
        used.update({(hiding.name, value): 1 for value in hiding.classes[HIDES_OTHERS[hiding.name]]})
    rng = random.Random(0)
    while any(used[axis.name, value] == 0 for axis in axes for value in _values(axis)):
        table.append(_filled(axes, _labels_of_unused(axes, used, fits, rng), fits, used))
    return table


def _missing_pairs(
    axes: tuple[Axis, ...], seen: list[list[str]], chosen: list[list[str]], fits: Fits
) -> list[list[str]]:
    """Rows for the pairs that allpairspy leaves out: it gives one up where its own order of axes allows no row."""
    met = {pair for labels in chosen for pair in _pairs(labels)}
    wanted = [
        ((i, left), (j, right))
        for i, j in combinations(range(len(axes)), 2)
        for left, right in product(seen[i], seen[j])
    ]
    added: list[list[str]] = []
    for pair in wanted:
        if pair not in met:
            missing = {other for other in wanted if other not in met}
            row = next(_rows_with(dict(pair), axes, seen, missing, fits, []), None)
            if row:  # none where the limits allow no such pair
                added.append(row)
                met |= set(_pairs(row))
    return added


def _rows_with(
    fixed: dict[int, str],
    axes: tuple[Axis, ...],
    seen: list[list[str]],
    missing: set[tuple[tuple[int, str], tuple[int, str]]],
    fits: Fits,
    labels: list[str],
) -> Iterator[list[str]]:
    """Rows that have the fixed classes; first those of which more pairs are missing."""
    index = len(labels)
    if index == len(axes):
        yield labels
        return
    options = [fixed[index]] if index in fixed else seen[index]
    known = [*enumerate(labels), *((i, label) for i, label in fixed.items() if i > index)]

    def gain(label: str) -> int:
        return sum((before, (index, label)) in missing or ((index, label), before) in missing for before in known)

    for label in sorted(options, key=gain, reverse=True):
        if feasible(axes, [*labels, label], fits):
            yield from _rows_with(fixed, axes, seen, missing, fits, [*labels, label])


def _pairs(labels: Sequence[str]) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    yield from combinations(enumerate(labels), 2)


def _with_each_class(axes: tuple[Axis, ...], hiding: Axis, fits: Fits) -> Iterator[list[str]]:
    """The class of ``hiding`` that hides the others, beside each class of every other axis."""
    for turn in range(max(len(axis.classes) for axis in axes)):
        labels: list[str] = []
        for axis in axes:
            turned = [*axis.classes, *axis.classes][turn % len(axis.classes) :]
            options = [HIDES_OTHERS[axis.name]] if axis is hiding else turned
            labels.append(next(label for label in options if feasible(axes, [*labels, label], fits)))
        yield labels


def _labels_of_unused(
    axes: tuple[Axis, ...], used: Counter[tuple[str, Any]], fits: Fits, rng: random.Random
) -> list[str]:
    """The class with most values that have not occurred, for each axis in turn; any class where all have."""
    labels: list[str] = []
    for axis in axes:
        waiting = {
            label: sum(used[axis.name, value] == 0 for value in values) for label, values in axis.classes.items()
        }
        shown = [label for label in axis.classes if label != HIDES_OTHERS.get(axis.name)]
        order = sorted(shown, key=lambda label: (-waiting[label], rng.random()))
        labels.append(next(label for label in order if feasible(axes, [*labels, label], fits)))
    return labels


def _filled(axes: tuple[Axis, ...], labels: list[str], fits: Fits, used: Counter[tuple[str, Any]]) -> list[Any]:
    """The values that were taken least often so far, as far as they fit together."""

    def choices(index: int, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if index == len(axes):
            yield row
            return
        axis = axes[index]
        for value in sorted(axis.classes[labels[index]], key=lambda value: used[axis.name, value]):
            extended = {**row, axis.name: value}
            if fits(extended):
                yield from choices(index + 1, extended)

    row = next(choices(0, {}))
    used.update(row.items())
    return list(row.values())


def _values(axis: Axis) -> Iterator[Any]:
    for values in axis.classes.values():
        yield from values


def table() -> str:
    """The text of ``layouts.json``, one layout on a line."""
    parts = []
    for name, parts_of in TABLES.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in covering_rows(*parts_of))
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
    return "{" + ",\n".join(parts) + "}\n"


def main(arguments: list[str]) -> int:
    """Write the table, or with ``--check`` compare it."""
    text = table()
    if "--check" in arguments:
        same = FILE.read_text(encoding="utf-8") == text
        print(f"{FILE.name} {'is' if same else 'IS NOT'} what the generator makes")
        return 0 if same else 1
    FILE.write_text(text, encoding="utf-8")
    print(", ".join(f"{len(rows)} layouts of the {name}" for name, rows in json.loads(text).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
