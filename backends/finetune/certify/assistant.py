"""The promises of an assistant, checked again from its folder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import reference
from backends.finetune.certify.check import THE_RUN, Check, Subject
from backends.finetune.certify.files import RunFiles
from backends.finetune.certify.moments import moment_checks
from backends.finetune.certify.records import logged_bounds
from backends.finetune.certify.states import state_checks
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder
from reference.errors import RunFolderError

CONDITION = "modular-ratchet"


def assistant_checks(path: Path) -> tuple[list[Check], Assistant | None, dict[str, str]]:
    """The checks of an assistant's folder, what it holds, and the SHA-256 of the files that were read.

    Clauses: SINK-5, SINK-6, MIX-7, CERT-1, CERT-2, BUDGET-1, DATA-1..DATA-5, STATE-1, STATE-4, CL-11,
    CL-12.
    """
    folder, files = AssistantFolder(path), RunFiles(path)
    try:
        found = folder.read()
    except RunFolderError as error:
        reason = f"{Path(error.field).name}: got {error.got}; allowed: {error.allowed}"
        return [THE_RUN.holds("history readable", "", [reason])], None, files.digests
    of, condition = Subject(CONDITION, None), found.protocol.condition(CONDITION)
    changed = (f"{name}: {reason}" for name, reason in folder.changed_files(found))
    checks = [
        THE_RUN.holds("history readable", "", []),
        THE_RUN.holds("files as recorded", "", changed),
        of.holds("versions as decided", "CL-11", _undecided(found)),
        of.holds("promises kept", "CL-12", _broken(found)),
    ]
    faults: list[str] = []
    files.loras([folder.files(task.record.phase).lora for task in found.tasks.values()], found.protocol.lora, faults)
    checks.append(of.holds("adapter files whole", "", faults))
    protocols = [Protocol.model_validate(record.config) for record in found.learned]
    budgets = [protocol.crma.displacement_budget for protocol in protocols]
    for record, protocol in zip(found.learned, protocols, strict=True):
        budget, own = protocol.crma.displacement_budget, protocol.condition(CONDITION)
        checks += logged_bounds(of, [record], own, budget)
    states, whole = files.states_of({phase: folder.crma(phase) for phase in sorted(found.kept_versions)}, of)
    checks += [whole, *state_checks(condition, None, states, found.learned, _widest(budgets[1:]))]
    if condition.data_budget is not None:
        epsilon = _widest([protocol.crma.data_budget for protocol in protocols[1:]])
        condition = replace(condition, data_budget=epsilon or condition.data_budget)
        paths = {record.phase: folder.files(record.phase).moments for record in found.learned}
        moments, readable = files.moments_of(paths, condition, of)
        epochs = [protocol.epochs for protocol in protocols]
        checks += [*readable, *moment_checks(condition, None, states, moments, found.learned, epochs)]
    return checks, found, files.digests


def described(found: Assistant) -> dict[str, Any]:
    """What a certification in JSON says of an assistant."""
    return {
        "model": found.model,
        "tasks": list(found.tasks),
        "forgotten": [record.task for record in found.forgotten],
        "backends": sorted({record.backend for record in found.learned}),
        "random_weights": found.random_weights,
    }


def _widest(budgets: Sequence[float | None]) -> float | None:
    """The largest; None where there is none, or one of them is none."""
    return None if None in budgets else max((budget for budget in budgets if budget is not None), default=None)


def _undecided(found: Assistant) -> Iterator[str]:
    """Where a task answers with another version than the losses choose; one that was not measured keeps its own."""
    versions: dict[str, int] = {}
    for record in found.learned:
        for name, version in record.versions.items():
            wanted = record.phase if name == record.task else versions.get(name)
            if (check := record.checked.get(name)) is not None:
                (moves,) = reference.ratchet_moves([check.decision[0]], [check.decision[1]])
                wanted = record.phase if moves else wanted
                if not moves and check.now != check.before:
                    yield f"{name} after {record.task}: other losses, though it stays with its version"
            if version != wanted:
                yield f"{name} after {record.task}: version {version}, while the losses choose {wanted}"
        versions = record.versions


def _broken(found: Assistant) -> Iterator[str]:
    own: dict[str, float] = {}
    for record in found.learned:
        if record.promise is not None and record.checked:
            names = list(record.checked)
            losses = [own[name] for name in names]
            before, now = (
                [getattr(check, side).loss for check in record.checked.values()] for side in ("before", "now")
            )
            broken = reference.broken_promises(losses, before, now, record.promise)
            for name, is_broken in zip(names, broken, strict=True):
                if is_broken:
                    now_loss = record.checked[name].now.loss
                    yield f"{name} after {record.task}: {now_loss:g} of {own[name]:g}, promised {record.promise:.2%}"
        own[record.task] = record.own.loss
