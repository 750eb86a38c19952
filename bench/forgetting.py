"""The tables of the protocol `forgetting`, from its stored results: intervals over held-out texts and seeds.

Clauses: CL-2..CL-4, CL-9, CL-13.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import reference
from backends.finetune.methods.conditions import KNOWN
from backends.finetune.report.intervals import interval, noise_floor
from backends.finetune.report.labels import percent, readable
from backends.finetune.report.pictures.answers import WAYS
from backends.finetune.report.rows import NOISE, panel_rows
from backends.finetune.runs.results import SNAPSHOTS, RunResults
from backends.finetune.runs.run_folder import differences

Rows = Iterator[list[str]]
Entry = dict[str, Any]  # of a stored file
RESAMPLES = 10_000
INHERIT = "naive" + SNAPSHOTS  # the same losses as frozen-inherit, without a run
#: with CRMA, and the same without it
SHARES = {
    "modular": "frozen",
    "modular@data-0.003": "frozen",
    "modular-fresh": "frozen",
    "modular-inherit": INHERIT,
    "modular-inherit@still-0.005": INHERIT,
    "modular-inherit@data-0.003": INHERIT,
    "modular-inherit@data-0.01": INHERIT,
    "modular-distilled@data-0.003": "frozen-distilled",
}
#: what softer targets give by themselves, and what the last LoRA gives beyond them
DISTILLATION = {"frozen-near-base": "frozen", "frozen-distilled": "frozen-near-base"}
BUDGETS = (
    ("modular@data-0.003", "modular"),
    ("modular-inherit@data-0.003", "modular-inherit"),
    ("modular-inherit@data-0.003", "modular-inherit@still-0.005"),
)
#: those of which bench/README.md shows each seed
BY_SEED = ("modular", "modular@data-0.003", "modular-distilled@data-0.003")


def every_condition(results: RunResults) -> Rows:
    """bench/README.md: all of them, with the number of their seeds."""
    yield ["condition", "seeds", "drift", "final holdout, nats", "advantage over FROZEN", "tasks 2 and 3 alone"]
    for name in results.with_snapshots:
        label = readable(name) + (" (= FROZEN, inherit)" if name == INHERIT else "")
        yield [label, str(len(results.complete_seeds(name))), *cells(results, name)]


def shares(results: RunResults) -> Rows:
    """bench/README.md: what CRMA itself contributes, against the same condition without it."""
    return _pairs(results, SHARES, "with CRMA", "without")


def distillation(results: RunResults) -> Rows:
    """bench/README.md: what a LoRA gains that is held near the answers of another."""
    return _pairs(results, DISTILLATION, "condition", "against")


def _pairs(results: RunResults, pairs: Mapping[str, str], *heads: str) -> Rows:
    yield [*heads, "seeds", "difference in final holdout", "p, paired t", "p, sign flips"]
    for name, against in pairs.items():
        seeds = [seed for seed in results.complete_seeds(name) if seed in results.complete_seeds(against)]
        found = interval(results, "advantage", name, seeds, against=against, resamples=RESAMPLES)
        ours, theirs = ([_final(results, condition, seed) for seed in seeds] for condition in (name, against))
        tests = ["–", "–"]
        if len(seeds) > 1:
            tests = [
                f"{p:.3f}" for p in (reference.paired_t_test(ours, theirs).p, reference.sign_flip_test(ours, theirs))
            ]
        yield [readable(name), readable(against), str(len(seeds)), _shown(found), *tests]


def budgets(results: RunResults) -> Rows:
    """bench/README.md: drift under the data budget against drift under another budget at the same seeds."""
    yield ["with", "against", "seeds", "drift lower by, percentage points", "p, paired t", "p, sign flips"]
    for name, against in BUDGETS:
        seeds = [seed for seed in results.complete_seeds(name) if seed in results.complete_seeds(against)]
        ours, theirs = ([_drift(results, condition, seed) for seed in seeds] for condition in (name, against))
        summary = reference.seed_summary([b - a for a, b in zip(ours, theirs, strict=True)])
        tests = reference.paired_t_test(ours, theirs).p, reference.sign_flip_test(ours, theirs)
        lower = f"{summary.mean:.2f} ± {summary.sd:.2f}"
        yield [readable(name), readable(against), str(len(seeds)), lower, *(f"{p:.2g}" for p in tests)]


def by_seed(results: RunResults) -> Rows:
    """bench/README.md: drift of NAIVE and MODULAR and CRMA's share, seed by seed, each with its interval over texts;
    and of the last one the advantage over FROZEN.
    """
    heads = [f"{readable(name)} {what}" for name in BY_SEED for what in ("drift", "share")]
    yield ["seed", "NAIVE drift", *heads, "its advantage over FROZEN"]
    for seed in results.seeds:
        cells = [_shown(interval(results, "drift", "naive", [seed], resamples=RESAMPLES))]
        for name in BY_SEED:
            share = interval(results, "advantage", name, [seed], against=SHARES[name], resamples=RESAMPLES)
            cells += [_shown(interval(results, "drift", name, [seed], resamples=RESAMPLES)), _shown(share)]
        yield [str(seed), *cells, _shown(interval(results, "advantage", BY_SEED[-1], [seed], resamples=RESAMPLES))]


def toggles(results: RunResults) -> Rows:
    """bench/README.md: the inference toggle over all seeds, with Wilson's intervals and McNemar's exact test."""
    yield [
        *("condition", "seeds", "right with CRMA", "right without", "only with / only without", "p, McNemar"),
        *("right without LoRA", "bare model"),
    ]
    for name in results.conditions:
        rows = [row for row in panel_rows(results) if row.condition == name]
        if not rows:
            continue
        questions, gained, lost = (
            sum(getattr(row, field) for row in rows) for field in ("questions", "gained", "lost")
        )
        cells = []
        for way in WAYS:
            counts = [getattr(row, way) for row in rows]
            if None in counts:
                cells.append("–")
                continue
            low, high = reference.wilson_interval(sum(counts), questions)
            cells.append(f"{sum(counts)} of {questions} ({100 * low:.0f} to {100 * high:.0f}%)")
        tested = [f"{gained} / {lost}", f"{reference.mcnemar_exact(gained, lost):.2g}"]
        yield [readable(name), str(len(rows)), *cells[:2], *tested, *cells[2:]]


#: what was varied of a condition, with {field}s of a section of the protocol
VARIED = {
    "frozen-inherit": "LoRA's rate × {later_rate_factor:g} after the first task",
    "modular@data-0.003": "n = {streams}, r = {rank}, γ = {gate_logit:g} at the start; rate of the basis "
    "{basis[learning_rate]:g}, of mixing and gate {mixing[learning_rate]:g}",
    "replay": "{memory_per_task} of 96 texts a task kept, {batch_size} a step",
    "a-gem": "{memory_per_task} of 96 texts a task kept, {batch_size} a step",
    "ewc": "λ = {strength:g}",
    "lwf": "λ = {strength:g}",
    "frozen-distilled": "λ = {strength:g}",
    "frozen-near-base": "λ = {strength:g}",
    "o-lora": "λ₁ = {strength:g}",
}
OF_SECTION = {"frozen-inherit": "lora", "modular@data-0.003": "crma"}  # the others have one of their own


def baselines(reported: Entry, tried: Sequence[Entry]) -> Rows:
    """bench/README.md: each baseline at the values that were tried, at a seed that is not reported; lowest loss first.

    ``reported``: the entry of the runs that the tables show, whose settings are marked.
    """
    yield ["condition", "value", "drift", "final holdout, nats"]
    found = [(entry["config"], row) for entry in tried for row in entry["rows"]]
    for config, row in [(config, row) for config, row in found if row["condition"] == "lwf"]:
        kept = {"condition": "frozen-distilled", "drift": 0.0}  # LwF's LoRA as it was after each task
        kept["final_holdout"] = sum(losses[-1] for losses in row["holdout"]) / len(row["holdout"])
        found.append((config | {"distilled": config["lwf"]}, kept))
    order = [*dict.fromkeys(row["condition"] for _, row in found if row["condition"] not in VARIED), *VARIED]
    found.sort(key=lambda pair: (order.index(pair[1]["condition"]), pair[1]["final_holdout"]))
    for config, row in found:
        name, value = row["condition"], ""
        if name in VARIED:
            section = OF_SECTION.get(name) or str(KNOWN[name].settings_section)
            value = VARIED[name].format(**config[section])
            is_reported = any(shown["condition"] == name for shown in reported["rows"])
            is_reported &= not any(differences(config[section], reported["config"].get(section)))
            value += " (reported)" if is_reported else ""
        drift = percent(100 * row["drift"]) + ("%" if row["drift"] else "")
        yield [readable(name), value, drift, f"{row['final_holdout']:.3f}"]


def recurring(runs: Sequence[RunResults]) -> Rows:
    """bench/README.md: the protocol `recurring`, seed by seed, since each has an order of its own."""
    yield ["seed", "condition", "drift", "final holdout, nats", "advantage over FROZEN", "over FROZEN, nearest"]
    for results in runs:
        for name in results.conditions:
            nearest = interval(results, "advantage", name, results.seeds, against="frozen-nearest", resamples=RESAMPLES)
            compared = _shown(nearest) if name != "frozen-nearest" else ""
            yield [str(results.seeds[0]), readable(name), *cells(results, name)[:3], compared]


def cells(results: RunResults, name: str) -> list[str]:
    """Drift, final holdout, advantage over FROZEN and that of tasks 2 on, with intervals."""
    seeds = results.complete_seeds(name)
    drift, gain, later = (
        interval(results, figure, name, seeds, resamples=RESAMPLES) for figure in ("drift", "advantage", "later")
    )
    holdout = f"{reference.seed_summary([_final(results, name, seed) for seed in seeds]).mean:.3f}"
    if name == "frozen":
        return [_shown(drift), holdout, "", ""]
    floor = noise_floor(results, seeds)
    marked = f" {NOISE}" if floor is not None and gain is not None and abs(gain.estimate) <= floor else ""
    return [_shown(drift), holdout, _shown(gain) + marked, _shown(later)]


def _metrics(results: RunResults, name: str, seed: int) -> reference.ContinualMetrics:
    metrics = results.metrics(name, seed)
    assert metrics is not None  # of a complete seed
    return metrics


def _final(results: RunResults, name: str, seed: int) -> float:
    return _metrics(results, name, seed).final_holdout


def _drift(results: RunResults, name: str, seed: int) -> float:
    return 100 * _metrics(results, name, seed).drift


def _shown(found: reference.Interval | None) -> str:
    if found is None:
        return "–"
    if found == (0.0, 0.0, 0.0):
        return percent(0.0)
    low, high = (percent(bound).removesuffix(" exactly") for bound in found[1:])
    return f"{percent(found.estimate)}% [{low}, {high}]"
