"""The figures of a run as rows of text, with the paper's beside them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import reference
from backends.finetune.report.intervals import FIGURES, interval, noise_floor
from backends.finetune.report.labels import percent
from backends.finetune.report.paper import paper_rows
from backends.finetune.runs.results import RunResults

NOISE = "≈"  # behind an advantage that is no larger than what another draw of LoRA's start changes


def signed(value: float) -> str:
    """Three decimals and a sign, of nats or of a fraction."""
    return f"{value:+z.3f}".replace("-", "−")


#: per figure of a finished seed: how it is written
FORMS: dict[str, Callable[[float], str]] = {
    "drift": percent, "holdout": "{:.3f}".format, "advantage": percent, "later": percent,
    "transfer": signed, "exact_match": signed,
}  # fmt: skip


class FigureRow(NamedTuple):
    """The figures of a condition, their cells as text; an interval, or else a range, follows its mean after a line
    break. ``seeds``: how many, or in a row of one seed its number. ``later``: advantage over all tasks but the first.
    ``source``: "" for this run, else the paper's table and model.
    """

    condition: str
    seeds: str
    drift: str
    holdout: str = "–"
    advantage: str = "–"
    later: str = "–"
    transfer: str = "–"
    exact_match: str = "–"
    source: str = ""


class PairedRow(NamedTuple):
    """MODULAR against another condition, paired by seed; ``t`` and ``flip`` are two-sided p values."""

    against: str
    measure: str
    n: int
    difference: str
    t: str
    flip: str


class PanelRow(NamedTuple):
    """The inference toggle on one panel: right answers with CRMA and without, only with it (``gained``) and only
    without (``lost``); ``p``: two-sided, of McNemar's exact test. Then those without LoRA and of the bare model; None
    in a run of an earlier version.
    """

    condition: str
    seed: int
    questions: int
    with_crma: int
    without_crma: int
    gained: int
    lost: int
    p: float
    without_lora: int | None = None
    without_both: int | None = None

    def interval(self, right: int) -> tuple[float, float]:
        """Wilson's 95% interval of one of the four counts."""
        return reference.wilson_interval(right, self.questions)


def summary_rows(results: RunResults) -> list[FigureRow]:
    """Per condition one row of this run, then the paper's, chosen by the protocol. Clauses: CL-2..CL-8."""
    rows = []
    for condition in results.with_snapshots:
        rows.append(_own_row(results, condition))
        rows += _paper(results, condition)
    return rows


def seed_rows(results: RunResults) -> list[FigureRow]:
    """Every seed of every condition; an unfinished one says how far it is."""
    rows = []
    for condition in results.with_snapshots:
        for seed in results.seeds:
            values = values_of(results, condition, [seed])
            if not values["holdout"]:
                done = f"{len(results.phases_of(condition, seed))} of {len(results.tasks)} phases"
                rows.append(FigureRow(condition, str(seed), done))
                continue
            cells = [form(values[name][0]) if values[name] else "–" for name, form in FORMS.items()]
            rows.append(FigureRow(condition, str(seed), *cells))
    return rows


def paired_rows(results: RunResults, subject: str = "modular") -> list[PairedRow]:
    """MODULAR against FROZEN, NAIVE, the controls and each baseline, in final holdout loss and in drift.

    Over the seeds that both have finished; with fewer than two there is nothing to test. Clause: CL-9.
    """
    others = [name for name in results.conditions if name != subject and "@" not in name]
    rows = []
    for name in others if subject in results.conditions else []:
        both = set(results.complete_seeds(name))
        seeds = [seed for seed in results.complete_seeds(subject) if seed in both]
        for key, measure, form in (("holdout", "final holdout, nats", signed), ("drift", "drift, %", percent)):
            ours, theirs = (values_of(results, condition, seeds)[key] for condition in (subject, name))
            if len(ours) != len(theirs) or len(ours) < 2:
                continue
            test = reference.paired_t_test(ours, theirs)
            flip = _p(reference.sign_flip_test(ours, theirs)) if test.n <= 20 else "–"
            rows.append(PairedRow(name, measure, test.n, form(test.mean_difference), _p(test.p), flip))
    return rows


def panel_rows(results: RunResults) -> list[PanelRow]:
    """Every panel of the run, by condition and seed; paper Table 8. Clause: CL-9."""
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            if (panel := results.panels.get((condition, seed))) is None:
                continue
            pairs = list(zip(panel.with_crma, panel.without_crma, strict=True))
            right, bypassed = sum(panel.with_crma), sum(panel.without_crma)
            gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
            p = reference.mcnemar_exact(gained, lost)
            others = [sum(given) if given else None for given in (panel.without_lora, panel.without_both)]
            rows.append(PanelRow(condition, seed, len(pairs), right, bypassed, gained, lost, p, *others))
    return rows


def values_of(results: RunResults, condition: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Of the finished seeds: drift and advantage in percent, holdout loss and forward transfer in nats, and the change
    of exact match as a fraction; a list is shorter, or empty, where something was not measured."""
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for seed in seeds:
        metrics, gain = results.metrics(condition, seed), results.advantage(condition, seed)
        if metrics is None:
            continue
        found["holdout"].append(metrics.final_holdout)
        if len(results.tasks) > 1:
            found["drift"].append(100 * metrics.drift)
        if gain is not None and condition != "frozen":
            found["advantage"].append(100 * gain)
            if (later := results.later_advantage(condition, seed)) is not None:
                found["later"].append(100 * later)
        more = {
            "transfer": _forward_transfer(results, condition, seed),
            "exact_match": results.exact_match_transfer(condition, seed),
        }
        for name, value in more.items():
            found[name] += [] if value is None else [value]
    return found


def _forward_transfer(results: RunResults, condition: str, seed: int) -> float | None:
    base, phases = results.base.get(seed), results.phases_of(condition, seed)
    if base is None or len(phases) < 2 or any(task not in base.holdout for task in results.tasks):
        return None
    if any(record.before is None for record in phases[1:]):
        return None
    before = [np.nan if record.before is None else record.before for record in phases]  # the first does not count
    return reference.forward_transfer(before, [base.holdout[task] for task in results.tasks])


def _own_row(results: RunResults, condition: str) -> FigureRow:
    values = values_of(results, condition, results.seeds)
    done, wanted = len(values["holdout"]), len(results.seeds)
    if not done:
        phases = max((len(results.phases_of(condition, seed)) for seed in results.seeds), default=0)
        text = f"{phases} of {len(results.tasks)} phases"
        return FigureRow(condition, f"0 of {wanted}", text)
    seeds = str(done) if done == wanted else f"{done} of {wanted}"
    drift, advantage, later = (_with_interval(results, name, condition, values[name]) for name in FIGURES)
    if 0 < len(values["advantage"]) < done:
        advantage += f"\n(of {len(values['advantage'])})"
    holdout = spread(values["holdout"], FORMS["holdout"], ranged=False)
    transfer, exact = (spread(values[name], signed, ranged=False) for name in ("transfer", "exact_match"))
    return FigureRow(condition, seeds, drift, holdout, advantage, later, transfer, exact)


def _with_interval(results: RunResults, figure: str, condition: str, values: list[float]) -> str:
    """Mean and sample SD, and on a second line the interval, or the range where texts were not stored."""
    found = interval(results, figure, condition, results.seeds) if any(values) else None
    if found is None:
        return spread(values, percent)
    floor = None if figure == "drift" else noise_floor(results, results.seeds)
    within = f" {NOISE}" if floor is not None and abs(found.estimate) <= floor else ""
    low, high = (percent(bound).removesuffix(" exactly") for bound in found[1:])
    return f"{spread(values, percent, ranged=False)}{within}\n[{low}, {high}]"


def _paper(results: RunResults, condition: str) -> list[FigureRow]:
    def cell(column: tuple[float, float | None] | None, form: Callable[[float], str]) -> str:
        if column is None:
            return "–"
        return form(column[0]) + ("" if column[1] is None else f" ± {column[1]:.2f}")

    return [
        FigureRow(
            condition,
            str(row.seeds),
            cell(row.drift, percent),
            cell(row.holdout, "{:.4f}".format),
            cell(row.advantage, percent),
            source=f"{row.table}, {row.model}",
        )
        for row in paper_rows(results.run)
        if row.condition == condition
    ]


def spread(values: list[float], form: Callable[[float], str], ranged: bool = True) -> str:
    """Mean ± sample SD, and the range on a second line."""
    if not values:
        return "–"
    summary = reference.seed_summary(values)
    if summary.sd is None or not any(values):
        return form(summary.mean)
    text = f"{form(summary.mean)} ± {form(summary.sd).lstrip('+').removesuffix(' exactly')}"
    return text + (f"\n{form(summary.min)} to {form(summary.max)}" if ranged else "")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
