"""The tables of results in README.md and bench/README.md, and their pictures, from the stored results.

    python -m bench.evidence            # names each table and picture that is not what its stored file gives
    python -m bench.evidence --write    # writes them all anew

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. A picture carries the SHA-256 of the file that it
was drawn from. So one stored file gives every figure of an experiment, and a test fails where a text shows another.

Clauses: CL-1..CL-4.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import reference
from backends.atomic import atomic_write
from backends.finetune.report.labels import percent, readable
from backends.finetune.report.paper import PaperRow, paper_rows
from backends.finetune.report.pictures import draw_pictures
from backends.finetune.report.rows import FORMS, spread, values_of
from backends.finetune.runs.records import BaseRecord, PhaseRecord, RunRecord
from backends.finetune.runs.results import RunResults
from reference.errors import ConfigError, CRMAError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
COMPARISON = RESULTS / "comparison.json"
SUITE = RESULTS / "conformance_suite.json"
PICTURES = {
    "overview.png": "comparison_overview.png",
    "drift.png": "comparison_drift.png",
    "budget.png": "comparison_budget.png",
}
_DRAWN_FROM = "Drawn from SHA-256"


def stored_results(entry: dict[str, Any]) -> RunResults:
    """The results of one run folder again, from what :mod:`bench.collect_runs` stored of it; its logs are not there."""
    tasks = entry["config"]["tasks"]
    phases = {}
    for row in entry["rows"]:
        for phase, losses in enumerate(row["holdout"]):
            phases[row["condition"], row["seed"], phase] = PhaseRecord(
                condition=row["condition"],
                seed=row["seed"],
                phase=phase,
                task=tasks[phase],
                losses=[],
                holdout=dict(zip(tasks, losses, strict=False)),
                before=row["before"][phase] if "before" in row else None,
                seconds=0.0,
                tokens=0,
            )
    conditions = tuple(dict.fromkeys(row["condition"] for row in entry["rows"]))
    seeds = tuple(dict.fromkeys(row["seed"] for row in entry["rows"]))
    run = RunRecord.model_validate(
        entry
        | {"tasks": tasks, "conditions": list(conditions), "seeds": list(seeds)}
        | {"displacement_budget": entry["config"]["crma"].get("displacement_budget")}
    )
    base = {record["seed"]: BaseRecord.model_validate(record) for record in entry.get("base", [])}
    return RunResults(run, conditions, seeds, phases, base)


def stored(path: Path) -> list[dict[str, Any]]:
    """The entries of a stored file. Raises: ConfigError."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not entries or not all({"config", "rows"} <= entry.keys() for entry in entries):
            raise ValueError("no list of runs")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"file {path}", got=str(error), allowed="what bench.collect_runs writes", remedy="collect the runs again"
        ) from error
    return entries


def comparison() -> RunResults:
    """The stored comparison, whose one run folder holds every condition."""
    (entry,) = stored(COMPARISON)
    return stored_results(entry)


#: condition -> how README.md's table names it; the rest of the comparison stands in bench/README.md
SHOWN = {
    "naive": "NAIVE: one LoRA for all tasks",
    "frozen": "FROZEN: a fresh LoRA per task",
    "modular": "MODULAR: the same, and the shared CRMA",
    "modular-pinned": "MODULAR, pinned: each task keeps the CRMA it was trained with",
    "o-lora": "O-LoRA",
    "lwf": "LwF",
    "ewc": "EWC, λ = {ewc[strength]:g} (chosen at seed 0)",
    "replay": "Experience replay, {replay[memory_per_task]} of 32 examples kept",
}


def results_table() -> Iterator[list[str]]:
    """README.md: the paper's conditions and the baselines, beside the paper's Table 7."""
    results = comparison()
    paper = {row.condition: row for row in paper_rows(results.run)}
    yield ["condition", "drift", "final holdout, nats", "advantage", "paper: drift", "paper: advantage"]
    for name, text in SHOWN.items():
        values = values_of(results, name, results.seeds)
        cells = [_percent(values["drift"]), spread(values["holdout"], FORMS["holdout"], ranged=False)]
        gain = _percent(values["advantage"]) if values["advantage"] else ""
        theirs = _paper_cells(paper.get(name))
        yield [text.format(**results.run.config), *cells, f"**{gain}**" if name == "modular" else gain, *theirs]


def _percent(values: list[float]) -> str:
    """Mean and sample SD, the sign of percent behind the mean; "0 exactly" where every seed is 0."""
    mean, *deviation = spread(values, percent, ranged=False).split(" ± ")
    return " ± ".join([mean if mean.endswith("exactly") else f"{mean}%", *deviation])


def _paper_cells(row: PaperRow | None) -> list[str]:
    columns = (None, None) if row is None else (row.drift, row.advantage)
    return ["" if column is None else f"{percent(column[0])}%" for column in columns]


def comparison_table() -> Iterator[list[str]]:
    """bench/README.md: every condition of the comparison."""
    results = comparison()
    yield ["condition", "drift, %", "range", "final holdout, nats", "advantage, %", "range", "forward transfer, nats"]
    for name in results.conditions:
        values = values_of(results, name, results.seeds)
        cells = {
            key: spread(values[key], form).partition("\n") if values[key] else ("", "", "")
            for key, form in FORMS.items()
        }
        drift, gain = cells["drift"], cells["advantage"]
        rest = [cells["holdout"][0], gain[0], gain[2], cells["transfer"][0]]
        yield [readable(name), drift[0], drift[2], *rest]


#: condition -> what was varied, as (section of the protocol, field), in words
VARIED = {
    "replay": ("replay", "memory_per_task", "replay, examples kept of 32 a task"),
    "ewc": ("ewc", "strength", "EWC, strength λ"),
    "lwf": ("lwf", "strength", "LwF, strength"),
    "o-lora": ("o_lora", "strength", "O-LoRA, strength λ₁"),
    "full": ("full", "learning_rate", "full, learning rate"),
}


def baselines_table() -> Iterator[list[str]]:
    """bench/README.md: each baseline at the values that were tried; what the comparison uses comes first."""
    yield ["baseline", "value", "seeds", "drift, %", "final holdout, nats", "advantage, %"]
    (compared,), tried = stored(COMPARISON), stored(RESULTS / "baselines_tried.json")
    for condition, (section, name, text) in VARIED.items():
        for entry in [compared, *tried]:
            rows = [row for row in entry["rows"] if row["condition"] == condition]
            if not rows:
                continue
            metrics = {row["seed"]: reference.continual_metrics(_matrix(row)) for row in rows}
            gains = [reference.advantage(_frozen(compared, seed), m.final_holdout) for seed, m in metrics.items()]
            value = f"{entry['config'][section][name]:g}" + (" (compared above)" if entry is compared else "")
            yield [
                text,
                value,
                f"{len(rows)}" if len(rows) > 1 else f"{rows[0]['seed']} alone",
                spread([100 * m.drift for m in metrics.values()], percent, ranged=False),
                spread([m.final_holdout for m in metrics.values()], FORMS["holdout"], ranged=False),
                spread([100 * gain for gain in gains], percent, ranged=False),
            ]
            text = ""


def _matrix(row: dict[str, Any]) -> list[list[float]]:
    """(T, T), with NaN for tasks that were not seen yet."""
    size = len(row["holdout"])
    return [losses + [float("nan")] * (size - len(losses)) for losses in row["holdout"]]


def _frozen(entry: dict[str, Any], seed: int) -> float:
    (row,) = (row for row in entry["rows"] if (row["condition"], row["seed"]) == ("frozen", seed))
    return reference.continual_metrics(_matrix(row)).final_holdout


def quickstart_table() -> Iterator[list[str]]:
    """bench/README.md: the quickstart, seed by seed."""
    (entry,) = stored(RESULTS / "quickstart.json")
    results, names = stored_results(entry), ("naive", "frozen", "modular")
    yield ["seed", *(f"{readable(n)} {key}" for key in ("drift", "holdout") for n in names), "MODULAR advantage"]
    for seeds in [*([seed] for seed in results.seeds), results.seeds]:
        values = {name: values_of(results, name, seeds) for name in names}
        cells = [_percent(values[name]["drift"]) for name in names]
        cells += [spread(values[name]["holdout"], FORMS["holdout"], ranged=False) for name in names]
        first = "mean ± sample SD" if len(seeds) > 1 else str(seeds[0])
        yield [first, *cells, _percent(values["modular"]["advantage"])]


def tried_table() -> Iterator[list[str]]:
    """bench/README.md: what was tried before the quickstart's values were chosen; all at one seed."""
    yield ["LoRA rate", "examples × epochs", "CRMA rates", "budget δ", "drift", "final holdout", "advantage"]
    frozen: dict[tuple[float, int, int], float] = {}
    for entry in stored(RESULTS / "quickstart_tried.json"):
        config, (row,) = entry["config"], entry["rows"]
        metrics, condition = reference.continual_metrics(_matrix(row)), row["condition"]
        setting = (config["lora"]["learning_rate"], config["train"], config["epochs"])
        budget = config["crma"]["displacement_budget"]
        holdout = "" if config["holdout"] == 32 else f", holdout {config['holdout']}"
        cells = [f"{setting[0]:g}", f"{setting[1]} × {setting[2]}{holdout}"]
        if condition == "modular":
            gain = percent(100 * reference.advantage(frozen[setting], metrics.final_holdout))
            rates = f"{config['crma']['basis']['learning_rate']:g} / {config['crma']['mixing']['learning_rate']:g}"
            cells += [rates, "none" if budget is None else f"{budget:g}"]
        else:
            frozen |= {setting: metrics.final_holdout} if condition == "frozen" else {}
            gain = (
                ""
                if condition == "frozen"
                else percent(100 * reference.advantage(frozen[setting], metrics.final_holdout))
            )
            cells += [readable(condition), ""]
        yield [*cells, percent(100 * metrics.drift), f"{metrics.final_holdout:.4f}", gain]


def suite_table() -> Iterator[list[str]]:
    """bench/README.md: what a run of the conformance suite costs, as :mod:`bench.conformance_suite` stored it."""
    yield [
        "backend",
        "profile",
        "processes",
        "seconds",
        "processor seconds",
        "peak, MiB",
        "tests",
        "shapes",
    ]
    try:
        for run in json.loads(SUITE.read_text(encoding="utf-8"))["runs"]:
            counts = [f"{run[name]:,} {name}" for name in ("passed", "skipped", "gaps", "failed") if run[name]]
            yield [
                f"`{' '.join([run['backend'], *run['arguments']])}`",
                run["profile"],
                str(run["processes"]),
                *(f"{run[name]:,.0f}" for name in ("wall_seconds", "cpu_seconds")),
                f"{run['peak_bytes'] / 2**20:,.0f}",
                ", ".join(counts),
                "" if run["shapes"] is None else f"{run['shapes']:,}",
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"file {SUITE}",
            got=f"{type(error).__name__}: {error}",
            allowed="what bench.conformance_suite writes",
            remedy="measure again",
        ) from error


def mutants_table() -> Iterator[list[str]]:
    """bench/README.md: how many wrong ports each profile misses, as ``conformance.selftest.mutant_runs`` stored it."""
    stored = json.loads((RESULTS / "conformance_mutants.json").read_text(encoding="utf-8"))
    missed = [stored[f"missed by {profile}"] for profile in ("full", "quick")]
    yield ["wrong ports", "missed in full", "missed by `--quick`", "of these wrong at some sizes or values alone"]
    yield [str(n) for n in (stored["mutants"], *map(len, missed), sum("_where_" in name for name in missed[1]))]


#: NAME -> its file, and its rows, the head first
TABLES: dict[str, tuple[Path, Callable[[], Iterator[list[str]]]]] = {
    "results": (ROOT / "README.md", results_table),
    "comparison": (ROOT / "bench" / "README.md", comparison_table),
    "baselines tried": (ROOT / "bench" / "README.md", baselines_table),
    "quickstart": (ROOT / "bench" / "README.md", quickstart_table),
    "quickstart tried": (ROOT / "bench" / "README.md", tried_table),
    "conformance suite": (ROOT / "bench" / "README.md", suite_table),
    "wrong ports": (ROOT / "bench" / "README.md", mutants_table),
}


def markdown(rows: Iterator[list[str]]) -> str:
    """Rows as a table of Markdown."""
    head, *body = rows
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])


def replaced(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` in its place. Raises: ConfigError if there is no such place, or several."""
    pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ConfigError(
            f"table {name}",
            got=f"{len(pattern.findall(text))} places",
            allowed="one place, between its two comments",
            remedy=f"put <!-- table {name} --> and <!-- end --> where the table belongs",
        )
    return pattern.sub(lambda found: found[1] + table + found[2], text)


def drawn_from(picture: Path) -> str:
    """SHA-256 of the stored file that a picture was drawn from; "" if it does not say."""
    with Image.open(picture) as opened:
        return str(opened.info.get(_DRAWN_FROM, ""))


def stale() -> list[str]:
    """What does not show what is stored, by name."""
    found = [
        f"table {name} of {path.relative_to(ROOT)}"
        for name, (path, rows) in TABLES.items()
        if (text := path.read_text(encoding="utf-8")) != replaced(text, name, markdown(rows()))
    ]
    digest = hashlib.sha256(COMPARISON.read_bytes()).hexdigest()
    return found + [f"picture {name}" for name in PICTURES.values() if drawn_from(RESULTS / name) != digest]


def write() -> None:
    """Write every table and picture from what is stored."""
    for name, (path, rows) in TABLES.items():
        text = replaced(path.read_text(encoding="utf-8"), name, markdown(rows()))
        atomic_write(path, text.encode())
    note = PngInfo()
    note.add_text(_DRAWN_FROM, hashlib.sha256(COMPARISON.read_bytes()).hexdigest())
    pictures = draw_pictures(comparison())
    for source, name in PICTURES.items():
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(pictures[source])) as picture:
            picture.save(buffer, "PNG", optimize=True, pnginfo=note)
        atomic_write(RESULTS / name, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if something is stale; 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write all tables and pictures anew")
    try:
        if parser.parse_args(arguments).write:
            write()
        found = stale()
    except (CRMAError, OSError) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"differs from what is stored: {name}" for name in found) or "every table and picture is as stored")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
