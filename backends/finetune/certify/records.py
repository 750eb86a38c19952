"""What the records of a run promise: complete, finite, bounded in every logged step, and no drift where none can be."""

from collections.abc import Sequence

import numpy as np

import reference
from backends.finetune.certify.check import BUDGET_ROUNDING, ROUNDING, Check, Measured, Subject
from backends.finetune.methods.method import Condition
from backends.finetune.runs.assistant_records import LearnedRecord
from backends.finetune.runs.records import PhaseRecord
from backends.finetune.runs.results import RunResults


def record_checks(results: RunResults, condition: Condition, seed: int, budget: float | None) -> list[Check]:
    """The checks of one condition and seed that need no file but results.jsonl."""
    of, phases = Subject(condition.name, seed), results.phases_of(condition.name, seed)
    return [
        _complete(of, phases, len(results.tasks)),
        *_drift(of, results, condition, seed),
        *([_ratchet(of, phases)] if condition.ratchet else []),
        *logged_bounds(of, phases, condition, budget),
    ]


def drift_limit(results: RunResults, condition: str, seed: int, percent: float) -> Check:
    """No prior task drifts by more than ``percent``."""
    of, name = Subject(condition, seed), "drift of every task, %"
    if (metrics := results.metrics(condition, seed)) is None:
        return of.holds(name, "CL-2", ["the run is not finished"])
    drifts = [(100 * float(drift), task) for drift, task in zip(metrics.drift_per_task, results.tasks, strict=False)]
    return of.at_most(name, "CL-2", drifts or [(0.0, "a single task")], percent)


def _complete(of: Subject, phases: list[PhaseRecord], expected: int) -> Check:
    faults = [f"{len(phases)} of {expected} phases are recorded"] if len(phases) < expected else []
    faults += [f"phase {record.phase + 1} has no training loss" for record in phases if not record.losses]
    faults += [
        f"holdout loss {loss:g} of {task} after phase {record.phase + 1}"
        for record in phases
        for task, loss in record.holdout.items()
        if not loss > 0
    ]
    return of.holds("holdout matrix complete", "CL-1", faults)


def _drift(of: Subject, results: RunResults, condition: Condition, seed: int) -> list[Check]:
    if not condition.never_drifts:
        metrics = results.metrics(condition.name, seed)
        mean = [] if metrics is None else [(100 * metrics.drift, "mean of the prior tasks")]
        return [of.not_promised("drift, %", mean, _why_it_drifts(condition))]
    matrix = results.holdout_matrix(condition.name, seed)
    moved = [
        (float(abs(matrix[phase, task] - matrix[task, task])), f"{results.tasks[task]} after phase {phase + 1}")
        for phase, task in zip(*np.tril_indices(len(matrix), -1), strict=True)
        if np.isfinite(matrix[phase, task])
    ]
    return [of.at_most("drift exactly 0, nats", "CL-2, CL-5", moved, 0.0)] if moved else []


def _ratchet(of: Subject, phases: list[PhaseRecord]) -> Check:
    """Each task answers with the version that the recorded losses choose."""
    faults: list[str] = []
    versions: dict[str, int] = {}
    for record in phases:
        place = f"phase {record.phase + 1}"
        if list(record.decision) != list(versions):
            faults.append(f"{place}: decided for {list(record.decision)}, while the earlier tasks are {list(versions)}")
            break
        losses = [record.decision[task] for task in versions]
        moves = reference.ratchet_moves([before for before, _ in losses], [after for _, after in losses])
        versions = {
            task: record.phase if moved else version
            for (task, version), moved in zip(versions.items(), moves, strict=True)
        } | {record.task: record.phase}
        if record.versions != versions:
            faults.append(f"{place}: versions {record.versions}, while the losses choose {versions}")
    return of.holds("versions as decided", "CL-11", faults)


def _why_it_drifts(condition: Condition) -> str:
    if condition.trains_crma == "always" and condition.crma != "none":
        return "the shared CRMA keeps training"
    return "what answers for an earlier task keeps training"


def logged_bounds(
    of: Subject, phases: Sequence[PhaseRecord | LearnedRecord], condition: Condition, budget: float | None
) -> list[Check]:
    """What the certificates of these phases say, step by step."""
    if condition.crma == "none":
        return [of.not_promised("spectral bounds", [], "there is no CRMA in it")]
    norms: list[Measured] = []
    values: list[Measured] = []
    moved: list[Measured] = []
    seen: list[Measured] = []
    missing = []
    for record in phases:
        phase, log = record.phase + 1, record.spectral
        if log is None or not log.steps:
            missing.append(f"phase {phase} logged no spectrum")
            continue
        for index, step in enumerate(log.steps):
            place = f"phase {phase}, step {step}"
            norms.append((log.norm_max[index], place))
            values.append((log.adapter_max[index], place))
            if (distance := log.displacement_max[index]) is not None:
                moved.append((distance, place))
            elif phase > 1 and budget is not None:
                missing.append(f"no displacement logged in {place}")
            if log.data_displacement_max and (value := log.data_displacement_max[index]) is not None:
                seen.append((value, place))
    found = [of.holds("certificates logged", "", missing)]
    if not norms:
        return found
    for name, clauses, measured in (
        ("norm of M, logged", "SINK-6", norms),
        ("norm of adapter, logged", "MIX-7, CERT-1", values),
    ):
        if condition.crma == "unconstrained":
            found.append(of.not_promised(name, measured, "the mixing matrix is free"))
        else:
            found.append(of.at_most(name, clauses, measured, 1 + ROUNDING))
    if condition.crma != "unconstrained":
        found += displacement_check(of, "displacement, logged", "BUDGET-1", moved, budget)
        if seen and condition.data_budget is not None:
            found += displacement_check(of, "data displacement, logged", "DATA-3", seen, condition.data_budget)
    return found


def displacement_check(
    of: Subject, name: str, clauses: str, moved: list[Measured], budget: float | None, times: int = 1
) -> list[Check]:
    """At most ``times`` the budget, up to rounding; without a budget it is shown, and without a value there is none."""
    if budget is None:
        return [of.not_promised(name, moved, "no displacement budget was set")]
    return [of.at_most(name, clauses, moved, times * (budget + BUDGET_ROUNDING))] if moved else []
