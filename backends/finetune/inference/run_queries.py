"""The texts of a run's tasks, read again, and the queries that a router is fitted on."""

from collections.abc import Sequence
from pathlib import Path

from backends.files import read_json
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.run_folder import checked_results
from backends.finetune.tasks.named import is_named, named_task
from backends.finetune.tasks.task import Example, Task, fingerprint, parse_task_option
from reference.errors import ProtocolError, RunFolderError


def run_tasks(run_folder: Path | str, *, seed: int | None = None, own: Sequence[str] = ()) -> list[Task]:
    """The tasks that a run was trained on: the protocol's are drawn again by name; ``own`` ones, from files, have to be
    given again as NAME=TRAIN.jsonl:HOLDOUT.jsonl. Each is compared with the fingerprint that the run folder holds.

    Raises: RunFolderError for texts other than those of the run, and what reading them raises.
    """
    folder = Path(run_folder)
    results = checked_results(folder)
    seed = results.seeds[0] if seed is None else seed
    known = _fingerprints(folder, seed)
    given = {task.name: task for task in (parse_task_option(option) for option in own)}
    if foreign := sorted(given.keys() - known.keys()):
        raise RunFolderError(
            "--task", got=f"the task {foreign[0]!r}", allowed=", ".join(known), remedy="name a task of this run"
        )
    protocol = _protocol(results.run.config)
    tasks = []
    for name in results.tasks:
        task = given.get(name) or (named_task(protocol, name, seed) if is_named(name) else None)
        if task is None or fingerprint(task) != known.get(name):
            raise RunFolderError(
                f"task {name}",
                got="no texts of that name" if task is None else "other texts than those that the run was trained on",
                allowed=f"the texts whose fingerprint is in {folder / f'tasks-{seed}.json'}",
                remedy=f"give them again: --task {name}=TRAIN.jsonl:HOLDOUT.jsonl",
            )
        tasks.append(task)
    return tasks


def queries_of(examples: Sequence[Example]) -> list[str]:
    """What a router sees of examples: the prompt; of plain texts, which have none, the text."""
    return [example.query for example in examples]


def _protocol(config: dict) -> Protocol:
    try:
        return Protocol.model_validate(config)
    except ValueError as error:
        raise ProtocolError(
            "protocol of the run", got=str(error), allowed="one of this version", remedy="use the version that ran it"
        ) from error


def _fingerprints(folder: Path, seed: int) -> dict[str, str]:
    file = folder / f"tasks-{seed}.json"
    try:
        content = read_json(file)
        return {str(name): str(value) for name, value in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RunFolderError(
            str(file),
            got=f"{type(error).__name__}",
            allowed="the fingerprints of the tasks, as `crma finetune` writes them",
            remedy="name a seed of this run with --seed",
        ) from error
