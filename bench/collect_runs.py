"""Condense run folders of `crma finetune` into one JSON file that can be committed beside the figures it backs.

    python -m bench.collect_runs runs/quickstart --out bench/results/quickstart.json

Per condition and seed: the holdout matrix in nats per answer token and, where it was measured, the loss of each task
before its own phase; drift, final holdout, advantage over FROZEN of the same seed (from the same folder, or from
``--frozen``), seconds and tokens of training. Per seed, where it was measured: the holdout losses of the bare model.

Clauses: CL-1..CL-4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reference
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import checked_results
from bench import program


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
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = program.parser("collect_runs", __doc__, stores=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--frozen", type=Path, help="run folder whose FROZEN all are compared with")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    def collected() -> None:
        frozen = options.frozen and checked_results(options.frozen)
        runs = [collect(results, frozen or results) for results in map(checked_results, options.folders)]
        program.store(options.out, runs, indent=1)

    return program.run("collect_runs", collected)


if __name__ == "__main__":
    raise SystemExit(main())
