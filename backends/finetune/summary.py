"""The figures of a run as rows of text, and as a table for the terminal, with the paper's beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

import reference
from backends.finetune.conditions import PAPER
from backends.finetune.labels import RANDOM_WEIGHTS, label, readable
from backends.finetune.paper import paper_rows
from backends.finetune.results import RunResults

COLUMNS = ("condition", "seeds", "drift, %", "holdout, nats", "advantage, %", "transfer, nats")
CAPTION = (
    "± is the sample standard deviation over seeds, below it the range. Holdout is the final loss per answer token, "
    "averaged over tasks; advantage is over FROZEN; transfer is forward: how much earlier tasks changed a task's loss "
    'before its own phase (negative = helped). Rows marked "paper" are of another model and scale: compare '
    "directions, not sizes."
)
NOT_ZERO = " FROZEN's drift is exactly 0 in a correct harness; the paper reports +1.95% for it."


class SummaryRow(NamedTuple):
    """One line of the summary, its cells as text; a range follows its mean after a line break. ``source``: "" for this
    run, else the paper's table and model."""

    condition: str
    seeds: str
    drift: str
    holdout: str
    advantage: str
    transfer: str
    source: str = ""


class SeedRow(NamedTuple):
    """One seed of one condition, its cells as text."""

    condition: str
    seed: str
    drift: str
    holdout: str
    advantage: str
    transfer: str


class PairedRow(NamedTuple):
    """MODULAR against another condition, paired by seed; ``t`` and ``flip`` are two-sided p values."""

    against: str
    measure: str
    n: int
    difference: str
    t: str
    flip: str


def summary_rows(results: RunResults) -> list[SummaryRow]:
    """Per condition one row of this run, then the paper's, chosen by the protocol. Clauses: CL-2..CL-6, CL-8."""
    rows = []
    for condition in results.conditions:
        rows.append(_own_row(results, condition))
        rows += _paper(results.run.protocol, condition)
    return rows


def seed_rows(results: RunResults) -> list[SeedRow]:
    """Every seed of every condition; an unfinished one says how far it is."""
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            values = _values(results, condition, [seed])
            if not values["holdout"]:
                done = f"{len(results.phases_of(condition, seed))} of {len(results.tasks)} phases"
                rows.append(SeedRow(condition, str(seed), done, "–", "–", "–"))
                continue
            forms = {"drift": _percent, "holdout": _loss, "advantage": _percent, "transfer": _nats}
            cells = [form(values[name][0]) if values[name] else "–" for name, form in forms.items()]
            rows.append(SeedRow(condition, str(seed), *cells))
    return rows


def paired_rows(results: RunResults, subject: str = "modular") -> list[PairedRow]:
    """MODULAR against FROZEN, NAIVE, the controls and each baseline, in final holdout loss and in drift.

    Over the seeds that both have finished; with fewer than two there is nothing to test. Clause: CL-9.
    """
    others = [name for name in results.conditions if name != subject and not name.startswith("modular@")]
    rows = []
    for name in others if subject in results.conditions else []:
        seeds = [seed for seed in results.complete_seeds(subject) if seed in results.complete_seeds(name)]
        for key, measure, form in (("holdout", "final holdout, nats", _nats), ("drift", "drift, %", _percent)):
            ours, theirs = (_values(results, condition, seeds)[key] for condition in (subject, name))
            if len(ours) != len(theirs) or len(ours) < 2:
                continue
            test = reference.paired_t_test(ours, theirs)
            flip = _p(reference.sign_flip_test(ours, theirs)) if test.n <= 20 else "–"
            rows.append(PairedRow(name, measure, test.n, form(test.mean_difference), _p(test.p), flip))
    return rows


WIDTH_WITH_TRANSFER = 100


def summary_table(results: RunResults, width: int = WIDTH_WITH_TRANSFER) -> Table:
    """The summary as a table for a terminal of ``width``; a narrow one goes without the column of forward transfer.

    The paper's rows are dim and say so. Clauses: CL-2..CL-6, CL-8.
    """
    run = results.run
    title = f"{label(run.model, 40)}, protocol {label(run.protocol, 30)}, {label(run.backend, 30)}"
    caption = caption_of(results)
    if run.random_weights:
        title, caption = f"{title}\n{RANDOM_WEIGHTS}", f"{RANDOM_WEIGHTS.capitalize()}. {caption}"
    with_transfer = bool(results.base) and width >= WIDTH_WITH_TRANSFER
    table = Table(
        title=Text(title), caption=Text(caption), caption_justify="left", title_justify="left", box=HORIZONTALS,
        pad_edge=False,
    )  # fmt: skip
    for index, heading in enumerate(COLUMNS if with_transfer else COLUMNS[:-1]):
        if index == 0:
            table.add_column(heading, min_width=16, overflow="fold")
        else:
            table.add_column(heading.replace(", ", "\n"), justify="right", no_wrap=True)
    previous = None
    for row in summary_rows(results):
        if previous is not None and row.condition != previous:
            table.add_section()
        first = f"paper: {row.source}" if row.source else label(readable(row.condition), 30)
        cells = (first, *row[1:6]) if with_transfer else (first, *row[1:5])
        style = "dim" if row.source else "bold" if row.condition in PAPER else ""
        table.add_row(*(Text(cell) for cell in cells), style=style)
        previous = row.condition
    return table


def orders_table(runs: Sequence[RunResults]) -> Table:
    """One protocol in several orders of its tasks: drift and final holdout of each condition, a row for each order."""
    table = Table(title=Text("Every order of the tasks"), title_justify="left", box=HORIZONTALS, pad_edge=False)
    table.add_column("order", overflow="fold")
    for condition in runs[0].conditions:
        table.add_column(f"{label(readable(condition), 30)}\ndrift, %\nholdout, nats", justify="right", no_wrap=True)
    for results in runs:
        own = [_own_row(results, condition) for condition in results.conditions]
        cells = [f"{row.drift}\n{row.holdout}" for row in own]
        table.add_row(*map(Text, (", ".join(label(task, 30) for task in results.tasks), *cells)))
        table.add_section()
    return table


def caption_of(results: RunResults) -> str:
    """What the columns mean, for this run."""
    shown = any(row.condition == "frozen" and row.drift for row in paper_rows(results.run.protocol))
    return CAPTION + (NOT_ZERO if shown and "frozen" in results.conditions else "")


def _values(results: RunResults, condition: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Of the finished seeds: drift and advantage in percent, holdout loss and forward transfer in nats."""
    found: dict[str, list[float]] = {"drift": [], "holdout": [], "advantage": [], "transfer": []}
    for seed in seeds:
        metrics, gain = results.metrics(condition, seed), results.advantage(condition, seed)
        if metrics is None:
            continue
        found["holdout"].append(metrics.final_holdout)
        if len(results.tasks) > 1:
            found["drift"].append(100 * metrics.drift)
        if gain is not None and condition != "frozen":
            found["advantage"].append(100 * gain)
        transfer = _forward_transfer(results, condition, seed)
        if transfer is not None:
            found["transfer"].append(transfer)
    return found


def _forward_transfer(results: RunResults, condition: str, seed: int) -> float | None:
    base, phases = results.base.get(seed), results.phases_of(condition, seed)
    if base is None or len(phases) < 2 or any(task not in base.holdout for task in results.tasks):
        return None
    if any(record.before is None for record in phases[1:]):
        return None
    before = [np.nan if record.before is None else record.before for record in phases]  # the first does not count
    return reference.forward_transfer(before, [base.holdout[task] for task in results.tasks])


def _own_row(results: RunResults, condition: str) -> SummaryRow:
    values = _values(results, condition, results.seeds)
    done, wanted = len(values["holdout"]), len(results.seeds)
    if not done:
        phases = max((len(results.phases_of(condition, seed)) for seed in results.seeds), default=0)
        text = f"{phases} of {len(results.tasks)} phases"
        return SummaryRow(condition, f"0 of {wanted}", text, "–", "–", "–")
    seeds = str(done) if done == wanted else f"{done} of {wanted}"
    advantage = _spread(values["advantage"], _percent)
    if 0 < len(values["advantage"]) < done:
        advantage += f"\n(of {len(values['advantage'])})"
    drift, holdout = _spread(values["drift"], _percent), _spread(values["holdout"], _loss, ranged=False)
    transfer = _spread(values["transfer"], _nats, ranged=False)
    return SummaryRow(condition, seeds, drift, holdout, advantage, transfer)


def _paper(protocol: str, condition: str) -> list[SummaryRow]:
    def cell(column: tuple[float, float | None] | None, form: Callable[[float], str]) -> str:
        if column is None:
            return "–"
        return form(column[0]) + ("" if column[1] is None else f" ± {column[1]:.2f}")

    return [
        SummaryRow(
            condition,
            str(row.seeds),
            cell(row.drift, _percent),
            cell(row.holdout, "{:.4f}".format),
            cell(row.advantage, _percent),
            "–",
            f"{row.table}, {row.model}",
        )
        for row in paper_rows(protocol)
        if row.condition == condition
    ]


def _spread(values: list[float], form: Callable[[float], str], ranged: bool = True) -> str:
    """Mean ± sample SD, and the range on a second line."""
    if not values:
        return "–"
    summary = reference.seed_summary(values)
    if summary.sd is None or not any(values):
        return form(summary.mean)
    text = f"{form(summary.mean)} ± {form(summary.sd).lstrip('+').removesuffix(' exactly')}"
    return text + (f"\n{form(summary.min)} to {form(summary.max)}" if ranged else "")


def _percent(value: float) -> str:
    return "0 exactly" if value == 0 else f"{value:+.2f}".replace("-", "−")


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _nats(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
