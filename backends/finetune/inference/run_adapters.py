"""Which files of a run folder answer for which task."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ValidationError

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.assistant_folder import AssistantFolder, is_assistant
from backends.finetune.runs.results import read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.finetune.tasks.named import domain_of
from reference.errors import CRMAError, RunFolderError


class TaskAdapter(NamedTuple):
    """What one task answers with: the sum of these LoRAs (PEFT folders), and a file of the shared adapter."""

    lora: tuple[Path, ...]
    crma: Path | None = None
    digests: Mapping[str, str] = MappingProxyType({})  # SHA-256 of the LoRAs' files by path, where a run recorded them

    def expected(self, folder: Path) -> dict[str, str] | None:
        """The digests of one LoRA's files, by name."""
        found = {name: self.digests.get(str(folder / name), "") for name in (CONFIG, WEIGHTS)}
        return found if self.digests else None


class RunAdapters(NamedTuple):
    """The finished tasks of one condition and seed. ``model``: the name of the base model's folder."""

    protocol: Protocol
    model: str
    condition: Condition
    seed: int
    random_weights: bool
    tasks: dict[str, TaskAdapter]
    fingerprint: dict[str, str] | None = None  # of the base model, where the folder has it


def run_adapters(run_folder: Path | str, *, seed: int | None = None, condition: str = "modular") -> RunAdapters:
    """Look up the adapters of a run, or of an assistant, which has one seed and condition.

    ``seed`` is the first one with a finished task, if it is None.

    One shared LoRA (naive, replay, EWC, LwF) answers for every task as it was after the last finished one; so does the
    shared CRMA, unless the condition pins each task to the state it was trained against. O-LoRA answers every task with
    the sum of all finished tasks' LoRAs.

    Raises: RunFolderError for a folder without such a run, for the condition "full", which has no adapters, and for a
    run of another version of this program.
    """
    if is_assistant(run_folder):
        return _of_assistant(AssistantFolder(run_folder))
    folder = RunFolder(run_folder)
    results = read_results(folder.path)
    finished = {own: len(results.phases_of(condition, own)) for own in results.seeds}
    chosen = next((own for own, count in finished.items() if count), None) if seed is None else seed
    if chosen is None or not finished.get(chosen):
        there = {(name, own) for name, own, _ in results.phases}
        raise RunFolderError(
            str(folder.path),
            got=f"condition {condition!r}" + ("" if seed is None else f" with seed {seed}"),
            allowed=", ".join(sorted(f"{name} (seed {own})" for name, own in there)) or "a run with a finished task",
            remedy="name one of these with --condition and --seed",
        )
    kind = _condition(condition, folder.path)
    if kind.trains == "full":
        raise RunFolderError(
            str(folder.path),
            got="condition 'full', which trains a whole model and no adapters",
            allowed="a condition that trains LoRA",
            remedy="choose another --condition",
        )
    try:
        protocol = Protocol.model_validate(results.run.config)
    except (ValidationError, CRMAError) as error:
        raise RunFolderError(
            str(folder.path),
            got=f"a run whose protocol cannot be read ({error})",
            allowed="a run of this version of the program",
            remedy="use the version that trained it; results.jsonl names it",
        ) from error
    folder.check_files(results, f"{chosen}-{condition}")
    digests = {str(folder.path / name): digest for name, digest in results.files.items()}
    last = finished[chosen] - 1
    lora = [folder.lora(chosen, condition, phase) for phase in range(last + 1)]
    tasks = {}
    for phase, name in enumerate(results.tasks[: last + 1]):
        newest = kind.lora_of(phase, [domain_of(task) for task in results.tasks[: last + 1]])
        own_lora = {"per-task": (lora[newest],), "shared": (lora[last],), "summed": tuple(lora)}[kind.trains]
        version = phase if kind.pinned else last
        if kind.ratchet:
            version = results.phases[condition, chosen, last].versions.get(name, phase)
        files = folder.files(chosen, condition, version)
        shared = {"none": None, "doubly-stochastic": files.crma, "unconstrained": files.mixing}[kind.crma]
        tasks[name] = TaskAdapter(own_lora, shared, digests)
    return RunAdapters(protocol, results.run.model, kind, chosen, results.run.random_weights, tasks)


def _condition(name: str, folder: Path) -> Condition:
    try:
        return parse_condition(name)
    except ValueError as error:
        raise RunFolderError(
            str(folder),
            got=f"condition {name!r}",
            allowed=str(error),
            remedy="use the version of this program that trained it",
        ) from error


def _of_assistant(folder: AssistantFolder) -> RunAdapters:
    """Each task with its LoRA, and the version of the CRMA that it answers with."""
    found = folder.read()
    if not found.tasks:
        raise RunFolderError(
            str(folder.path), got="no task", allowed="a folder that has learned one", remedy="crma learn DATA --into it"
        )
    folder.check_files(found)
    digests = {str(folder.path / name): digest for name, digest in found.files.items()}
    tasks = {}
    for name, task in found.tasks.items():
        files = folder.files(task.record.phase, task.version)
        tasks[name] = TaskAdapter((files.lora,), files.crma, digests)
    protocol = found.protocol.model_copy(update={"model": found.found_at})
    condition = parse_condition("modular-ratchet")
    return RunAdapters(protocol, found.model, condition, 0, found.random_weights, tasks, found.fingerprint)
