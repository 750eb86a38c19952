"""Condense run folders of `crma finetune` into one JSON file that can be committed beside the figures it backs.

    python -m bench.collect_runs runs/quickstart --out bench/results/quickstart.json
    python -m bench.collect_runs runs/seed-5 runs/seed-6 --join --out bench/results/forgetting.json
    python -m bench.collect_runs runs/seed-7 --add --out bench/results/forgetting.json

With ``--join`` folders that differ in their seeds and conditions alone become one entry; with ``--add`` they join the
one entry that the file holds, whose folders may be gone.

Per condition and seed: the holdout matrix in nats per answer token and, where it was measured, the loss of each task
before its own phase; drift, final holdout, advantage over FROZEN of the same seed (from the same entry, or from
``--frozen``), seconds and tokens of training; of every held-out text its loss after its task's own phase and after the
last one. Per seed, where it was measured: the holdout losses of the bare model.

Clauses: CL-1..CL-4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reference
from backends.finetune.methods.conditions import KNOWN, in_order, parse_condition
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import checked_results, differences
from bench import program
from reference.errors import ConfigError

Entry = dict[str, Any]
#: part of an entry -> what tells its records apart
PARTS = {"base": ("seed",), "panels": ("condition", "seed"), "rows": ("condition", "seed")}
#: of the configurations of runs that are joined; a method's section may, where one of them alone has the method
MAY_DIFFER = {"seeds", "conditions", "description", *(condition.settings_section for condition in KNOWN.values())}


def collect(results: RunResults) -> Entry:
    """The finished conditions and seeds of one run folder, as JSON values; advantages are :func:`compared`'s."""
    rows = []
    for condition in results.conditions:
        for seed in results.complete_seeds(condition):
            metrics = results.metrics(condition, seed)
            assert metrics is not None
            phases = results.phases_of(condition, seed)
            matrix = results.holdout_matrix(condition, seed)
            rows.append(
                {
                    "condition": condition,
                    "seed": seed,
                    "drift": metrics.drift,
                    "drift_per_task": metrics.drift_per_task.tolist(),
                    "final_holdout": metrics.final_holdout,
                    "advantage": None,
                    "holdout": [row[~np.isnan(row)].tolist() for row in matrix],
                    "before": [phase.before for phase in phases],
                    "exact_match": [phase.exact_match for phase in phases],
                    "texts": _texts(results, condition, seed),
                    "training_seconds": sum(phase.seconds for phase in phases),
                    "training_tokens": sum(phase.tokens for phase in phases),
                    "largest_mixing_norm": max((max(p.spectral.norm_max) for p in phases if p.spectral), default=None),
                }
            )
    run = results.run
    return {
        "protocol": run.protocol,
        "model": run.model,
        "random_weights": run.random_weights,
        "backend": run.backend,
        "machine": run.machine,
        "versions": run.versions,
        "config": run.config,
        "base": [{"seed": seed, "holdout": record.holdout} for seed, record in results.base.items()],
        "panels": [panel.model_dump() for panel in results.panels.values()],
        "rows": rows,
    }


def _texts(results: RunResults, condition: str, seed: int) -> list[dict[str, Any]] | None:
    """Per task, rounded to a hundred thousandth of a nat: as :meth:`RunResults.text_losses`, by column."""
    if (tables := results.text_losses(condition, seed)) is None:
        return None
    names = ("own", "final", "tokens")
    return [dict(zip(names, table.T.round(5).tolist(), strict=True)) for table in tables]


def joined(entries: Sequence[Entry]) -> Entry:
    """Several entries as one; a later record takes the place of the same one before.

    Raises: ConfigError where more than seeds and conditions differs.
    """
    first = entries[0]
    sections: Entry = {}  # settings of a method, where it was run: those of an entry without it say nothing
    for entry in entries:
        of_conditions = (parse_condition(name).settings_section for name in entry["config"]["conditions"])
        mine = {name: entry["config"].get(name) for name in of_conditions if name is not None}
        fields = {**first["config"], **entry["config"]}
        kept = [
            *((f"config.{key}", first["config"].get(key), entry["config"].get(key)) for key in fields),
            *((key, first.get(key), entry.get(key)) for key in ("model", "random_weights", "backend", "machine")),
            *((key, value, entry["versions"].get(key)) for key, value in first["versions"].items() if key != "commit"),
        ]
        found = [(key, a, b) for key, a, b in kept if key.removeprefix("config.") not in MAY_DIFFER]
        found += [(f"config.{key}", sections.get(key, value), value) for key, value in mine.items()]
        if differing := [key for key, a, b in found if any(differences(a, b))]:
            raise ConfigError(
                "--join",
                got=f"folders that differ in {', '.join(differing)}",
                allowed="runs of one protocol and model on one machine, with other seeds or conditions",
                remedy="collect what differs into a file of its own",
            )
        sections |= mine
    commits = dict.fromkeys(name for entry in entries for name in entry["versions"].get("commit", "").split(", "))
    conditions = in_order(name for entry in entries for name in entry["config"]["conditions"])
    seeds = sorted({seed for entry in entries for seed in entry["config"]["seeds"]})
    together = first | {
        "config": first["config"] | sections | {"seeds": seeds, "conditions": list(conditions)},
        "versions": first["versions"] | {"commit": ", ".join(commits)},
    }
    for part, keys in PARTS.items():
        records = {tuple(record[key] for key in keys): record for entry in entries for record in entry.get(part, [])}
        together[part] = list(records.values())
    together["rows"].sort(key=lambda row: (conditions.index(row["condition"]), row["seed"]))
    return together


def compared(entry: Entry, frozen: Entry) -> Entry:
    """The entry with each row's advantage over FROZEN of the same seed, where ``frozen`` has it."""
    against = {row["seed"]: row["final_holdout"] for row in frozen["rows"] if row["condition"] == "frozen"}
    for row in entry["rows"]:
        baseline = against.get(row["seed"])
        row["advantage"] = baseline and reference.advantage(baseline, row["final_holdout"])
    return entry


def main(arguments: Sequence[str] | None = None) -> int:
    parser = program.parser("collect_runs", __doc__, stores=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--frozen", type=Path, help="run folder whose FROZEN all are compared with")
    parser.add_argument("--join", action="store_true", help="make one entry of all folders")
    parser.add_argument("--add", action="store_true", help="join them with the one entry that --out holds")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    def collected() -> None:
        frozen = options.frozen and collect(checked_results(options.frozen))
        found = [collect(checked_results(folder)) for folder in options.folders]
        if options.add:
            found = [*program.read_stored(options.out), *found]
        if options.join or options.add:
            found = [joined(found)]
        program.store(options.out, [compared(entry, frozen or entry) for entry in found])

    return program.run("collect_runs", collected)


if __name__ == "__main__":
    raise SystemExit(main())
