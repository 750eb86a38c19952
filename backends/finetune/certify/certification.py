"""All checks of a run folder, and what they leave open."""

import importlib.metadata
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import reference
from backends.finetune.certify.assistant import assistant_checks, described
from backends.finetune.certify.check import THE_RUN, Check, Subject
from backends.finetune.certify.consistency import protocol_of, record_consistent, run_consistent
from backends.finetune.certify.files import RunFiles
from backends.finetune.certify.moments import moment_checks
from backends.finetune.certify.promises import CANNOT_KNOW, NOT_CHECKED, PROMISES
from backends.finetune.certify.records import drift_limit, record_checks
from backends.finetune.certify.states import StoredState, state_checks
from backends.finetune.runs.assistant_folder import Assistant, is_assistant
from backends.finetune.runs.results import RESULTS_NAME, RunResults, read_results
from reference.errors import ConfigError, RunFolderError


@dataclass(frozen=True)
class Certification:
    """What was checked of one run folder. It passes if nothing fails and something was checked."""

    checks: list[Check]
    results: RunResults | None
    digests: dict[str, str]
    assistant: Assistant | None = None

    @property
    def passed(self) -> bool:
        verdicts = {check.verdict for check in self.checks}
        return "pass" in verdicts and "fail" not in verdicts

    def as_json(self) -> dict[str, Any]:
        """For programs: every check, the digest of every file that was read, the versions, and what was not checked."""
        run = self.results.run if self.results else None
        about = None if self.assistant is None else described(self.assistant)
        return {
            "format": "crma-certification",
            "verdict": "pass" if self.passed else "fail",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "crma": importlib.metadata.version("crma"),
            "spec_version": reference.SPEC_VERSION,
            "run": about
            if run is None
            else run.model_dump(
                include={"protocol", "model", "backend", "machine", "versions", "tasks", "random_weights"}, mode="json"
            ),
            "promises": {check.name: PROMISES[check.name] for check in self.checks},
            "checks": [_plain(check) for check in self.checks],
            "not_checked": list(NOT_CHECKED),
            "cannot_be_known": list(CANNOT_KNOW),
            "sha256": dict(sorted(self.digests.items())),
        }


def certify_run(folder: Path | str, max_drift: float | None = None) -> Certification:
    """Check every promise of a run again, from its files.

    Args:
        folder: as `crma finetune` or `crma learn` left it; nothing in it is changed.
        max_drift: percent; if given, no prior task of MODULAR (of modular@DELTA where a run has no MODULAR) may drift
            by more.

    A file that is missing, damaged or not finite is a failed check. Clauses: SINK-5, SINK-6, MIX-7,
    CERT-1, CERT-2, BUDGET-1, DATA-1..DATA-5, STATE-1, STATE-4, CL-1, CL-2, CL-5.

    Raises: RunFolderError if ``folder`` is no run folder; ConfigError for a ``max_drift`` that is no number, or where
    the run has no MODULAR.
    """
    path = Path(folder)
    if is_assistant(path):
        if max_drift is not None:
            raise ConfigError(
                "--max-drift",
                got=max_drift,
                allowed="a run folder; an assistant keeps the promises that were given with --promise",
                remedy="leave the option out",
            )
        of_assistant, assistant, digests = assistant_checks(path)
        return Certification(of_assistant, None, digests, assistant)
    if not (path / RESULTS_NAME).exists() and not (path / "run.json").exists():
        raise RunFolderError(
            str(path),
            got="a folder without results.jsonl and run.json" if path.is_dir() else "no folder",
            allowed="a run folder of `crma finetune`",
            remedy="name the folder that was given as --out"
            if not any(path.glob("order-*/run.json"))
            else "name one of its folders order-*, each of which is a run",
        )
    files = RunFiles(path)
    try:
        results = read_results(path)
    except RunFolderError as error:
        reason = f"{Path(error.field).name}: got {error.got}; allowed: {error.allowed}"
        return Certification([THE_RUN.holds("results readable", "CL-1", [reason])], None, files.digests)
    protocol, faults = protocol_of(results.run.config)
    if protocol is None:
        check = THE_RUN.holds("records agree with the protocol", "CL-1", faults)
        return Certification([check], results, files.digests)
    limited = () if max_drift is None else _limited(results, max_drift)
    checks: list[Check] = []
    every_state: list[StoredState] = []
    for name in results.conditions:
        try:
            condition = protocol.condition(name)
        except ValueError as error:
            checks.append(Subject(name, None).holds("condition known", "CL-5", [str(error)]))
            continue
        budget = condition.limit(results.run.displacement_budget)
        for seed in results.seeds:
            checks += record_checks(results, condition, seed, budget)
            if name in limited and max_drift is not None:
                checks.append(drift_limit(results, name, seed, max_drift))
            whole, loras = files.adapters(condition, seed, len(results.tasks), protocol.lora)
            states, readable = files.states(condition, seed, len(results.tasks))
            values = {"lora": loras, "crma": [state.values for state in states]}
            checks += [
                whole,
                files.as_recorded(results, condition, seed),
                record_consistent(results, protocol, condition, seed, values),
            ]
            phases = results.phases_of(name, seed)
            paths = {phase: files.places.files(seed, name, phase).moments for phase in range(len(results.tasks))}
            moments, readable_moments = files.moments_of(paths, condition, Subject(name, seed))
            checks += readable + state_checks(condition, seed, states, phases, budget) + readable_moments
            epochs = protocol.epochs * condition.epochs
            checks += moment_checks(condition, seed, states, moments, phases, [epochs] * len(phases))
            every_state += states
    whole_run = [files.of_this_run(results, every_state), run_consistent(results, protocol)]
    return Certification([*whole_run, *checks], results, files.digests)


def _limited(results: RunResults, max_drift: float) -> tuple[str, ...]:
    if not math.isfinite(max_drift):
        raise ConfigError("--max-drift", got=max_drift, allowed="a finite number, in percent", remedy="for example 0.5")
    budgeted = tuple(name for name in results.conditions if name.startswith("modular@"))
    limited = ("modular",) if "modular" in results.conditions else budgeted
    if not limited:
        raise ConfigError(
            "--max-drift",
            got="a run without MODULAR",
            allowed="a run with the condition modular or modular@DELTA",
            remedy="leave the option out; the drift of the other conditions is exactly 0 or not promised",
        )
    return limited


def _plain(check: Check) -> dict[str, Any]:
    """JSON has no NaN and no infinity: such a value is null, and the reason says so."""
    row = check._asdict() | {"margin": check.margin}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
