"""Conditions in words, and names on one line, for tables and pictures."""

from backends.files import printable
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.runs.records import RunRecord
from backends.finetune.runs.results import SNAPSHOTS

RANDOM_WEIGHTS = "random weights: figures say nothing about quality"


def readable(condition: str) -> str:
    """The condition in words: "MODULAR, δ 0.002"; one that is not known in capitals."""
    name, snapshots, _ = condition.partition(SNAPSHOTS)
    try:
        return parse_condition(name).label + (", snapshots" if snapshots else "")
    except ValueError:
        return condition.upper()


def budget_of(condition: str) -> float | None:
    """delta of ``modular@DELTA``, infinity for ``modular@none``; None for every other condition."""
    if not condition.startswith("modular@"):
        return None
    try:
        found = parse_condition(condition)
    except ValueError:
        return None
    return found.budget if found.basis == "always" else None


def percent(value: float) -> str:
    """A signed figure with two decimals, or with one digit that counts where these would be zeros; "0 exactly" for 0.

    >>> percent(-0.1666), percent(-0.0031), percent(0.0)
    ('−0.17', '−0.003', '0 exactly')
    """
    if value == 0:
        return "0 exactly"
    return (f"{value:+.2f}" if abs(value) >= 0.005 else f"{value:+.1g}").replace("-", "−")


def title_of(run: RunRecord) -> str:
    """Model, protocol and backend of a run."""
    return f"{label(run.model, 40)}, protocol {label(run.protocol, 30)}, {label(run.backend, 30)}"


def label(name: str, width: int = 18) -> str:
    """``name`` on one line, printable and at most ``width`` characters long."""
    shown = printable(" ".join(name.split())) or "(no name)"
    if len(shown) <= width:
        return shown
    tail = (width - 1) // 3  # names of a series differ at their end
    return shown[: width - 1 - tail].rstrip() + "…" + shown[-tail:].lstrip()
