"""Take a task out of an assistant."""

from datetime import UTC, datetime
from pathlib import Path

from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder
from backends.finetune.runs.results import append_record
from reference.errors import ConfigError


def forget(folder: Path | str, task: str, *, even_so: bool = False) -> str:
    """Remove a task's LoRA, texts and sample answers, the page and the router that were made with them, and the
    versions of the CRMA that no other task answers with.

    The other tasks answer exactly as before. What this cannot undo is said in the words that are returned: the shared
    CRMA was trained on the task, and so were the LoRAs that started from its own; the moments of a data budget hold
    sums over its tokens.

    Args:
        even_so: forget it also where other tasks' LoRAs started from its own.

    Raises: RunFolderError; ConfigError for an unknown task, for one that others started from, and while a phase is
        interrupted that started from an earlier task's LoRA.
    """
    assistant_folder = AssistantFolder(folder)
    if not assistant_folder.exists:
        assistant_folder.read()  # says what is missing, and makes no folder
    with assistant_folder.locked():
        found = assistant_folder.read()
        if task not in found.tasks:
            raise ConfigError(
                "--task", got=repr(task), allowed=", ".join(found.tasks) or "no task yet", remedy="name one of these"
            )
        if assistant_folder.is_inheriting:
            raise ConfigError(
                "--task",
                got=f"{task!r}, while a phase is interrupted that started from the LoRA of an earlier task",
                allowed="to forget before such a phase or after it: what it starts from is not to change on the way",
                remedy="repeat the command that was interrupted, or give its work up with --discard",
            )
        heirs = _heirs(found, task)
        if heirs and not even_so:
            raise ConfigError(
                "--task",
                got=f"{task!r}, from whose LoRA {', '.join(heirs)} started",
                allowed="a task that no other one started from, unless it is said that this is known",
                remedy=f"forget {', '.join(heirs)} as well, before it; or add --even-so: they keep what they took over",
            )
        for made in (assistant_folder.page, *assistant_folder.path.glob("router-*.safetensors")):
            made.unlink(missing_ok=True)
        append_record(
            assistant_folder.history,
            {"kind": "forgotten", "task": task, "time": datetime.now(UTC).isoformat(timespec="seconds")},
        )
        assistant_folder.tidy()
    left = "The shared CRMA was trained on it, too, and keeps what it learned there"
    left += f"; so do the LoRAs of {', '.join(heirs)}, which started from its own." if heirs else "."
    if any(name.startswith("moments-") for name in found.files):
        left += " The moments of the data budget keep sums over its tokens, of which no text can be read."
    return f"forgotten: {task}; its LoRA and texts are removed. {left}"


def _heirs(found: Assistant, task: str) -> list[str]:
    """The tasks whose LoRA started from that of ``task``, or from one that did, be it forgotten by now."""
    latest: dict[str, int] = {}  # a name may be learned again once it is forgotten
    descended = {found.tasks[task].record.phase}
    for record in found.learned:
        if record.start is not None and latest.get(record.start) in descended:
            descended.add(record.phase)
        latest[record.task] = record.phase
    return [name for name, other in found.tasks.items() if name != task and other.record.phase in descended]
