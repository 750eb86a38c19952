"""The tables of results in README.md and bench/README.md, and their pictures, from the stored results.

    python -m bench.evidence            # names each table and picture that is not what its stored file gives
    python -m bench.evidence --write    # writes them all anew

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. A picture carries the SHA-256 of the file that it
was drawn from. So one stored file gives every figure of an experiment, and a test fails where a text shows another.

Clauses: CL-1..CL-4.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backends.atomic import atomic_write
from backends.finetune.methods.conditions import SECTIONS
from backends.finetune.report.labels import percent, readable
from backends.finetune.report.paper import paper_rows
from backends.finetune.report.pictures import draw_pictures
from backends.finetune.report.rows import FORMS, spread, values_of
from backends.finetune.runs.records import BaseRecord, PanelRecord, PhaseRecord, RunRecord
from backends.finetune.runs.results import RunResults
from bench import forgetting, learn_starts, program
from bench.forgetting import INHERIT
from reference.errors import ConfigError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
COMPARISON = RESULTS / "comparison.json"
FORGETTING = RESULTS / "forgetting.json"
SUITE = RESULTS / "conformance_suite.json"
Rows = Iterator[list[str]]
#: picture -> the stored file that it is drawn from, and its name among a report's
PICTURES = {
    "forgetting_overview.png": (FORGETTING, "overview.png"),
    "comparison_drift.png": (COMPARISON, "drift.png"),
    "comparison_budget.png": (COMPARISON, "budget.png"),
}
_DRAWN_FROM = "Drawn from SHA-256"


def stored_results(entry: dict[str, Any]) -> RunResults:
    """The results of one run folder again, from what :mod:`bench.collect_runs` stored of it; its logs are not there."""
    tasks = entry["config"]["tasks"]
    phases = {}
    for row in entry["rows"]:
        texts, last = row.get("texts"), len(tasks) - 1
        for phase, losses in enumerate(row["holdout"]):
            of_texts = {}
            if texts:
                of_texts = {tasks[phase]: texts[phase]["own"]}
                of_texts |= {
                    task: of_task["final"] for task, of_task in zip(tasks, texts, strict=True) if phase == last
                }
            phases[row["condition"], row["seed"], phase] = PhaseRecord(
                condition=row["condition"],
                seed=row["seed"],
                phase=phase,
                task=tasks[phase],
                losses=[],
                holdout=dict(zip(tasks, losses, strict=False)),
                before=row["before"][phase] if "before" in row else None,
                exact_match=row["exact_match"][phase] if "exact_match" in row else {},
                text_losses=of_texts,
                answer_tokens=texts[phase]["tokens"] if texts else [],
                seconds=0.0,
                tokens=0,
            )
    conditions, seeds = (tuple(dict.fromkeys(row[key] for row in entry["rows"])) for key in ("condition", "seed"))
    of_all = {"tasks": tasks, "conditions": list(conditions), "seeds": list(seeds)}
    budget = entry["config"]["crma"].get("displacement_budget")
    run = RunRecord.model_validate(entry | of_all | {"displacement_budget": budget})
    base = {record["seed"]: BaseRecord.model_validate(record) for record in entry.get("base", [])}
    panels = [PanelRecord.model_validate(record) for record in entry.get("panels", [])]
    return RunResults(run, conditions, seeds, phases, base, {(panel.condition, panel.seed): panel for panel in panels})


def the_one(path: Path) -> RunResults:
    """The results of a file with one entry."""
    (entry,) = program.read_stored(path)
    return stored_results(entry)


#: condition -> how README.md's table names it; all of them stand in bench/README.md
SHOWN = {
    "naive": "NAIVE: one LoRA for all tasks",
    "frozen": "FROZEN: a fresh LoRA per task",
    "modular": "MODULAR: the same, and the shared CRMA, with a displacement budget",
    "modular@data-0.003": "MODULAR with a data budget, the default of `crma learn`",
    "frozen-near-base": "FROZEN, near the base model: a fresh LoRA, held near the answers of the base model; no CRMA",
    "frozen-distilled": "FROZEN, distilled: each LoRA starts from the last one and is held near its answers; no CRMA",
    "modular-distilled@data-0.003": "MODULAR, distilled: the same, and the shared CRMA with a data budget",
}


def results_table() -> Rows:
    """README.md: the conditions of `forgetting` that every seed has, beside the paper's figures."""
    results = the_one(FORGETTING)
    of_paper = {row.condition: row for row in paper_rows(the_one(COMPARISON).run)}
    yield ["condition", "drift", "final holdout, nats", "advantage over FROZEN", "paper: drift", "paper: advantage"]
    for name, text in SHOWN.items():
        assert len(results.complete_seeds(name)) == len(results.seeds)
        row = of_paper.get(name)
        theirs = [f"{percent(column[0])}%" if column else "" for column in ((row.drift, row.advantage) if row else ())]
        yield [text, *forgetting.cells(results, name)[:3], *(theirs or ["", ""])]


def _mean(values: dict[str, list[float]], name: str) -> str:
    """Mean and sample SD of one of the figures that :func:`values_of` gives."""
    return spread(values[name], FORMS[name], ranged=False)


def _percent(values: list[float]) -> str:
    """Mean and sample SD, the sign of percent behind the mean; "0 exactly" where every seed is 0."""
    mean, *deviation = spread(values, percent, ranged=False).split(" ± ")
    return " ± ".join([mean if mean.endswith("exactly") else f"{mean}%", *deviation])


def comparison_table() -> Rows:
    """bench/README.md: every condition of the comparison."""
    results = the_one(COMPARISON)
    yield ["condition", "drift, %", "range", "final holdout, nats", "advantage, %", "range", "forward transfer, nats"]
    for name in results.with_snapshots:
        values = values_of(results, name, results.seeds)
        ranged = [spread(values[key], percent) if values[key] else "" for key in ("drift", "advantage")]
        (drift, _, of_drift), (gain, _, of_gain) = (text.partition("\n") for text in ranged)
        label = readable(name) + (" (= FROZEN, inherit)" if name == INHERIT else "")
        yield [label, drift, of_drift, _mean(values, "holdout"), gain, of_gain, _mean(values, "transfer")]


#: condition -> what was varied, as (section of the protocol, field), in words
VARIED = {
    "replay": ("replay", "memory_per_task", "replay, examples kept of 32 a task"),
    "ewc": ("ewc", "strength", "EWC, strength λ"),
    "lwf": ("lwf", "strength", "LwF, strength"),
    "o-lora": ("o_lora", "strength", "O-LoRA, strength λ₁"),
    "full": ("full", "learning_rate", "full, learning rate"),
}


def baselines_table() -> Rows:
    """bench/README.md: each baseline at the values that were tried; what the comparison uses comes first."""
    yield ["baseline", "value", "seeds", "drift, %", "final holdout, nats", "advantage, %"]
    (compared,), tried = program.read_stored(COMPARISON), program.read_stored(RESULTS / "baselines_tried.json")
    for condition, (section, name, text) in VARIED.items():
        for entry in [compared, *tried]:
            rows = [row for row in entry["rows"] if row["condition"] == condition]
            if not rows:
                continue
            value = f"{entry['config'][section][name]:g}" + (" (compared above)" if entry is compared else "")
            values = {
                "drift": [100 * row["drift"] for row in rows],
                "holdout": [row["final_holdout"] for row in rows],
                "advantage": [100 * row["advantage"] for row in rows],
            }
            seeds = f"{len(rows)}" if len(rows) > 1 else f"{rows[0]['seed']} alone"
            yield [text, value, seeds, *(_mean(values, figure) for figure in values)]
            text = ""


def quickstart_table() -> Rows:
    """bench/README.md: the quickstart, seed by seed."""
    results, names = the_one(RESULTS / "quickstart.json"), ("naive", "frozen", "modular")
    yield ["seed", *(f"{readable(n)} {key}" for key in ("drift", "holdout") for n in names), "MODULAR advantage"]
    for seeds in [*([seed] for seed in results.seeds), results.seeds]:
        values = {name: values_of(results, name, seeds) for name in names}
        cells = [_percent(values[name]["drift"]) for name in names]
        cells += [_mean(values[name], "holdout") for name in names]
        first = "mean ± sample SD" if len(seeds) > 1 else str(seeds[0])
        yield [first, *cells, _percent(values["modular"]["advantage"])]


def tried_table() -> Rows:
    """bench/README.md: what was tried before the quickstart's values were chosen; all at one seed."""
    yield ["LoRA rate", "examples × epochs", "CRMA rates", "budget δ", "drift", "final holdout", "advantage"]
    for entry in program.read_stored(RESULTS / "quickstart_tried.json"):
        config, (row,) = entry["config"], entry["rows"]
        crma, condition = config["crma"], row["condition"]
        holdout = "" if config["holdout"] == 32 else f", holdout {config['holdout']}"
        cells = [f"{config['lora']['learning_rate']:g}", f"{config['train']} × {config['epochs']}{holdout}"]
        if condition == "modular":
            budget = crma["displacement_budget"]
            rates = f"{crma['basis']['learning_rate']:g} / {crma['mixing']['learning_rate']:g}"
            cells += [rates, "none" if budget is None else f"{budget:g}"]
        else:
            cells += [readable(condition), ""]
        gain = "" if condition == "frozen" else percent(100 * row["advantage"])
        yield [*cells, percent(100 * row["drift"]), f"{row['final_holdout']:.4f}", gain]


def suite_table() -> Rows:
    """bench/README.md: what a run of the conformance suite costs, as :mod:`bench.conformance_suite` stored it."""
    yield ["backend", "profile", "processes", "seconds", "processor seconds", "peak, MiB", "tests", "shapes"]
    for run in program.read_stored(SUITE, "bench.conformance_suite")["runs"]:
        yield [
            f"`{' '.join([run['backend'], *run['arguments']])}`",
            run["profile"],
            str(run["processes"]),
            *(f"{run[name]:,.0f}" for name in ("wall_seconds", "cpu_seconds")),
            f"{run['peak_bytes'] / 2**20:,.0f}",
            ", ".join(f"{run[name]:,} {name}" for name in ("passed", "skipped", "gaps", "failed") if run[name]),
            "" if run["shapes"] is None else f"{run['shapes']:,}",
        ]


def mutants_table() -> Rows:
    """bench/README.md: how many wrong ports each profile misses, as ``conformance.selftest.mutant_runs`` stored it."""
    stored = program.read_stored(RESULTS / "conformance_mutants.json", "conformance.selftest.mutant_runs")
    missed = [stored[f"missed by {profile}"] for profile in ("full", "quick")]
    yield ["wrong ports", "missed in full", "missed by `--quick`", "of these wrong at some sizes or values alone"]
    yield [str(n) for n in (stored["mutants"], *map(len, missed), sum("_where_" in name for name in missed[1]))]


def forgetting_tried_table() -> Rows:
    """bench/README.md: LoRA's rate on FROZEN's first task, by which the rate of `forgetting` was chosen."""
    entries = program.read_stored(RESULTS / "forgetting_tried.json")
    entries.sort(key=lambda entry: entry["config"]["lora"]["learning_rate"])
    seeds = [row["seed"] for row in entries[0]["rows"]]
    yield ["LoRA rate", *(f"holdout, seed {seed}" for seed in seeds), "mean"]
    for entry in entries:
        losses = [row["final_holdout"] for row in entry["rows"]]
        mean = f"{sum(losses) / len(losses):.3f}"
        yield [f"{entry['config']['lora']['learning_rate']:g}", *(f"{loss:.3f}" for loss in losses), mean]


def forgetting_baselines_table() -> Rows:
    """bench/README.md: the values of the baselines that were tried for `forgetting`."""
    (reported,) = program.read_stored(FORGETTING)
    return forgetting.baselines(reported, program.read_stored(RESULTS / "forgetting_baselines_tried.json"))


def learn_starts_table() -> Rows:
    """bench/README.md: where the LoRA of an assistant's task starts; fewer texts of the longer, real ones."""
    heads, *invented = learn_starts.rows(
        program.read_stored(RESULTS / "learn_starts-invented.json", "bench.learn_starts")
    )
    _, *real = learn_starts.rows(program.read_stored(RESULTS / "learn_starts-real.json", "bench.learn_starts"))
    yield from (heads, *invented, *real)


def recurring_table() -> Rows:
    """bench/README.md: the protocol `recurring`."""
    return forgetting.recurring([stored_results(entry) for entry in program.read_stored(RESULTS / "recurring.json")])


def _of_forgetting(rows: Callable[[RunResults], Rows]) -> Callable[[], Rows]:
    """A table of the stored runs of `forgetting`, which are one entry."""

    return lambda: rows(the_one(FORGETTING))


_OF_BENCH = ROOT / "bench" / "README.md"
#: NAME -> its file, and its rows, the head first
TABLES: dict[str, tuple[Path, Callable[[], Rows]]] = {
    "results": (ROOT / "README.md", results_table),
    "comparison": (_OF_BENCH, comparison_table),
    "baselines tried": (_OF_BENCH, baselines_table),
    "forgetting": (_OF_BENCH, _of_forgetting(forgetting.every_condition)),
    "forgetting, CRMA's share": (_OF_BENCH, _of_forgetting(forgetting.shares)),
    "forgetting, distillation": (_OF_BENCH, _of_forgetting(forgetting.distillation)),
    "forgetting, budgets": (_OF_BENCH, _of_forgetting(forgetting.budgets)),
    "forgetting by seed": (_OF_BENCH, _of_forgetting(forgetting.by_seed)),
    "forgetting, toggle": (_OF_BENCH, _of_forgetting(forgetting.toggles)),
    "forgetting tried": (_OF_BENCH, forgetting_tried_table),
    "forgetting, baselines tried": (_OF_BENCH, forgetting_baselines_table),
    "recurring": (_OF_BENCH, recurring_table),
    "learn starts": (_OF_BENCH, learn_starts_table),
    "quickstart": (_OF_BENCH, quickstart_table),
    "quickstart tried": (_OF_BENCH, tried_table),
    "conformance suite": (_OF_BENCH, suite_table),
    "wrong ports": (_OF_BENCH, mutants_table),
}


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
        if (text := path.read_text(encoding="utf-8")) != replaced(text, name, program.markdown(rows()))
    ]
    return found + [
        f"picture {name}"
        for name, (path, _) in PICTURES.items()
        if drawn_from(RESULTS / name) != hashlib.sha256(path.read_bytes()).hexdigest()
    ]


def _shown_of(path: Path) -> RunResults:
    """What the pictures of a file show: of `forgetting` README's recommended conditions and the baselines."""
    results = the_one(path)
    if path != FORGETTING:
        return results
    kept = tuple(name for name in results.conditions if (name in SHOWN and name != "modular") or name in SECTIONS)
    return replace(results, conditions=kept)


def write() -> None:
    """Write every table and picture from what is stored."""
    for name, (path, rows) in TABLES.items():
        text = replaced(path.read_text(encoding="utf-8"), name, program.markdown(rows()))
        atomic_write(path, text.encode())
    drawn = {path: draw_pictures(_shown_of(path)) for path, _ in PICTURES.values()}
    for name, (path, source) in PICTURES.items():
        note, buffer = PngInfo(), io.BytesIO()
        note.add_text(_DRAWN_FROM, hashlib.sha256(path.read_bytes()).hexdigest())
        with Image.open(io.BytesIO(drawn[path][source])) as picture:
            picture.save(buffer, "PNG", optimize=True, pnginfo=note)
        atomic_write(RESULTS / name, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if something is stale; 2 for a mistake."""
    parser = program.parser("evidence", __doc__, stores=False)
    parser.add_argument("--write", action="store_true", help="write all tables and pictures anew")
    options = parser.parse_args(arguments)

    def checked() -> int:
        if options.write:
            write()
        found = [f"differs from what is stored: {name}" for name in stale()]
        print("\n".join(found) or "every table and picture is as stored")
        return 1 if found else 0

    return program.run("evidence", checked)


if __name__ == "__main__":
    raise SystemExit(main())
