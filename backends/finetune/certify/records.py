"""What the records of a run promise: complete, finite, bounded in every logged step, and no drift where none can be."""

from __future__ import annotations

import numpy as np

from backends.finetune.certify.check import (
    BUDGET_ROUNDING,
    ROUNDING,
    Check,
    at_most,
    holds,
    largest,
    not_promised,
)
from backends.finetune.methods.method import Condition
from backends.finetune.runs.results import RunResults


def record_checks(results: RunResults, condition: Condition, seed: int, budget: float | None) -> list[Check]:
    """The checks of one condition and seed that need no file but results.jsonl."""
    return [
        _complete(results, condition, seed),
        *_drift(results, condition, seed),
        *_logged(results, condition, seed, budget),
    ]


def drift_limit(results: RunResults, condition: str, seed: int, percent: float) -> Check:
    """No prior task drifts by more than ``percent``."""
    metrics = results.metrics(condition, seed)
    name = "drift of every task, %"
    if metrics is None:
        return holds(condition, seed, name, "CL-2", ["the run is not finished"])
    drifts = [(100 * float(drift), task) for drift, task in zip(metrics.drift_per_task, results.tasks, strict=False)]
    return at_most(condition, seed, name, "CL-2", largest(drifts or [(0.0, "a single task")]), percent)


def _complete(results: RunResults, condition: Condition, seed: int) -> Check:
    finished, expected = results.phases_of(condition.name, seed), len(results.tasks)
    faults = []
    if len(finished) < expected:
        faults.append(f"{len(finished)} of {expected} phases are recorded")
    faults += [f"phase {record.phase + 1} has no training loss" for record in finished if not record.losses]
    faults += [
        f"holdout loss {loss:g} of {task} after phase {record.phase + 1}"
        for record in finished
        for task, loss in record.holdout.items()
        if not loss > 0
    ]
    return holds(condition.name, seed, "holdout matrix complete", "CL-1", faults)


def _drift(results: RunResults, condition: Condition, seed: int) -> list[Check]:
    matrix = results.holdout_matrix(condition.name, seed)
    phases, tasks = np.tril_indices(len(matrix), -1)
    moved = [
        (float(abs(matrix[phase, task] - matrix[task, task])), f"{results.tasks[task]} after phase {phase + 1}")
        for phase, task in zip(phases, tasks, strict=True)
        if np.isfinite(matrix[phase, task])
    ]
    if not condition.never_drifts:
        metrics = results.metrics(condition.name, seed)
        worst = None if metrics is None else (100 * metrics.drift, "mean of the prior tasks")
        return [not_promised(condition.name, seed, "drift, %", worst, _why_it_drifts(condition))]
    if not moved:
        return []
    name = "drift exactly 0, nats"
    return [at_most(condition.name, seed, name, "CL-2, CL-5", largest(moved), 0.0)]


def _why_it_drifts(condition: Condition) -> str:
    if condition.trains_crma == "always" and condition.crma != "none":
        return "the shared CRMA keeps training"
    return "what answers for an earlier task keeps training"


def _logged(results: RunResults, condition: Condition, seed: int, budget: float | None) -> list[Check]:
    if condition.crma == "none":
        return [not_promised(condition.name, seed, "spectral bounds", None, "there is no CRMA in it")]
    logs = [(record.phase + 1, record.spectral) for record in results.phases_of(condition.name, seed)]
    norms, largest_values, moved = [], [], []
    missing = [f"phase {phase} logged no spectrum" for phase, log in logs if log is None or not log.steps]
    for phase, log in logs:
        for index, step in enumerate(log.steps if log else []):
            assert log is not None
            place = f"phase {phase}, step {step}"
            norms.append((log.norm_max[index], place))
            largest_values.append((log.adapter_max[index], place))
            distance = log.displacement_max[index]
            if distance is not None:
                moved.append((distance, place))
            elif phase > 1 and budget is not None:
                missing.append(f"no displacement logged in {place}")
    found = [holds(condition.name, seed, "certificates logged", "", missing)]
    if not norms:
        return found
    if condition.crma == "unconstrained":
        reason = "the mixing matrix is free"
        names = ("norm of M, logged", "norm of adapter, logged")
        values = (norms, largest_values)
        return found + [
            not_promised(condition.name, seed, n, largest(v), reason) for n, v in zip(names, values, strict=True)
        ]
    bound = 1 + ROUNDING
    found.append(at_most(condition.name, seed, "norm of M, logged", "SINK-6", largest(norms), bound))
    name = "norm of adapter, logged"
    found.append(at_most(condition.name, seed, name, "MIX-7, CERT-1", largest(largest_values), bound))
    name = "displacement, logged"
    if budget is None:
        found.append(not_promised(condition.name, seed, name, largest(moved) if moved else None, "no budget was set"))
    elif moved:
        found.append(at_most(condition.name, seed, name, "BUDGET-1", largest(moved), budget + BUDGET_ROUNDING))
    return found
