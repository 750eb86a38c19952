"""Condense run folders of `crma finetune` into one JSON file that can be committed beside the figures it backs.

    python -m bench.collect_runs runs/quickstart --out bench/results/quickstart.json
    python -m bench.collect_runs runs/seed-5 runs/seed-6 --join --out bench/results/forgetting.json

With ``--join`` folders that differ in their seeds and conditions alone become one entry.

Per condition and seed: the holdout matrix in nats per answer token and, where it was measured, the loss of each task
before its own phase; drift, final holdout, advantage over FROZEN of the same seed (from the same folder, or from
``--frozen``), seconds and tokens of training; of every held-out text its loss after its task's own phase and after the
last one. Per seed, where it was measured: the holdout losses of the bare model.

Clauses: CL-1..CL-4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reference
from backends.finetune.methods.conditions import in_order
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import checked_results
from bench import program
from reference.errors import ConfigError

PARTS = ("phases", "base", "panels")


def collect(results: RunResults, frozen: RunResults) -> dict[str, Any]:
    """The finished conditions and seeds of one run folder, as JSON values."""
    rows = []
    for condition in results.conditions:
        for seed in results.complete_seeds(condition):
            metrics, baseline = results.metrics(condition, seed), frozen.metrics("frozen", seed)
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
                    "advantage": baseline and reference.advantage(baseline.final_holdout, metrics.final_holdout),
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


def joined(runs: Sequence[RunResults]) -> RunResults:
    """The results of several folders as one. Raises: ConfigError where more than seeds and conditions differs."""
    first, *others = runs
    for other in others:
        pairs = [
            *((f"config.{key}", value, other.run.config.get(key)) for key, value in first.run.config.items()),
            *((key, getattr(first.run, key), getattr(other.run, key)) for key in ("model", "backend", "machine")),
            *((key, value, other.run.versions.get(key)) for key, value in first.run.versions.items()),
        ]
        may_differ = ("config.seeds", "config.conditions", "commit")
        if differing := [key for key, a, b in pairs if a != b and key not in may_differ]:
            raise ConfigError(
                "--join",
                got=f"folders that differ in {', '.join(differing)}",
                allowed="runs of one protocol and model on one machine, with other seeds or conditions",
                remedy="leave --join out, and each folder is an entry of its own",
            )
    commits = ", ".join(dict.fromkeys(run.run.versions.get("commit", "") for run in runs))
    seeds = tuple(dict.fromkeys(seed for run in runs for seed in run.seeds))
    conditions = in_order(name for run in runs for name in run.conditions)
    config = first.run.config | {"seeds": list(seeds), "conditions": list(conditions)}
    versions = first.run.versions | {"commit": commits}
    of_all = {"config": config, "versions": versions, "seeds": list(seeds), "conditions": list(conditions)}
    phases, base, panels = ({key: value for run in runs for key, value in getattr(run, part).items()} for part in PARTS)
    return RunResults(first.run.model_copy(update=of_all), conditions, seeds, phases, base, panels)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = program.parser("collect_runs", __doc__, stores=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--frozen", type=Path, help="run folder whose FROZEN all are compared with")
    parser.add_argument("--join", action="store_true", help="make one entry of all folders")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    def collected() -> None:
        frozen = options.frozen and checked_results(options.frozen)
        found = [checked_results(folder) for folder in options.folders]
        found = [joined(found)] if options.join else found
        program.store(options.out, [collect(results, frozen or results) for results in found])

    return program.run("collect_runs", collected)


if __name__ == "__main__":
    raise SystemExit(main())
