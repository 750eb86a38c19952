"""The folder of an assistant: one base model, the tasks that it was taught, and the CRMA that each answers with.

FOLDER/assistant.json           the base model, and the settings that all tasks share
FOLDER/history.jsonl            one line per task learned or forgotten; it alone says what the folder holds
FOLDER/task-N/                  the LoRA of the task learned in phase N, in PEFT's own format
FOLDER/crma-N.safetensors       the shared CRMA after phase N: a version that a task answers with, the first, the last
FOLDER/moments-N.safetensors    with a data budget, the moment of the tokens of all tasks up to phase N
FOLDER/texts-N.jsonl            what the task of phase N is measured by, and asked like
FOLDER/answers-N.json           sample answers after phase N
FOLDER/underway.json, FOLDER/checkpoint.safetensors     the phase under way

A phase writes files of its own number, and the line that names them is its last act. What no line names and no phase
under way needs is removed by the next process that holds the folder.
"""

import json
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.atomic import atomic_write
from backends.files import read_json, sha256_of
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.assistant_records import (
    AnswersRecord,
    FolderRecord,
    ForgottenRecord,
    LearnedRecord,
    Measure,
)
from backends.finetune.runs.locked_folder import LockedFolder
from backends.finetune.runs.results import append_record, read_records
from backends.finetune.runs.run_folder import PhaseFiles
from reference.errors import CRMAError, RunFolderError

FORMAT, VERSION = "crma-assistant", 1


@dataclass
class Taught:
    """A task that the folder answers for. ``version``: the phase whose CRMA it answers with. ``now``: what was measured
    of it last with that CRMA."""

    record: LearnedRecord
    version: int
    now: Measure


@dataclass(frozen=True)
class Assistant:
    """What an assistant's folder holds.

    Attributes:
        model: the name of the base model's folder, and ``found_at``: how it was named, or where it lay, when the folder
            was made. fingerprint: of the base model. protocol: the settings that all tasks share. tasks: by name, in
            the order in which they were learned. learned: every phase, of forgotten tasks as well. answers: samples.
        files: SHA-256 of every file that is to be there, by its path within the folder.
    """

    folder: Path
    model: str
    found_at: str
    fingerprint: dict[str, str]
    random_weights: bool
    protocol: Protocol
    tasks: dict[str, Taught] = field(default_factory=dict)
    learned: list[LearnedRecord] = field(default_factory=list)
    forgotten: list[ForgottenRecord] = field(default_factory=list)
    answers: dict[str, AnswersRecord] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def kept_versions(self) -> set[int]:
        """The phases whose CRMA is kept: those that a task answers with, and the first and the last."""
        ends = {0, len(self.learned) - 1} if self.learned else set()
        return ends | {task.version for task in self.tasks.values()}


class AssistantFolder(LockedFolder):
    """Raises: RunFolderError for a folder that is none."""

    IDENTITY, FIELDS = "assistant.json", frozenset({"format", "version", "model"})
    PLACES = ("", "task-*/")
    MADE_BY, OPTION = "crma learn", "--into"

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.history = self.path / "history.jsonl"
        self.page = self.path / "status.html"
        self.underway, self.checkpoint = self.path / "underway.json", self.path / "checkpoint.safetensors"

    def crma(self, phase: int) -> Path:
        """The shared CRMA after a phase."""
        return self.path / f"crma-{phase}.safetensors"

    def texts(self, phase: int) -> Path:
        """What the task of a phase is measured by."""
        return self.path / f"texts-{phase}.jsonl"

    def answers(self, phase: int) -> Path:
        """Sample answers of the task of a phase, if any were asked for."""
        return self.path / f"answers-{phase}.json"

    def files(self, phase: int, version: int | None = None) -> PhaseFiles:
        """What the task of a phase answers with, for an engine; with the CRMA of another phase if it has moved."""
        absent = self.path / "absent"
        crma, moments = self.crma(phase if version is None else version), self.path / f"moments-{phase}.safetensors"
        return PhaseFiles(self.path / f"task-{phase}", crma, absent, absent, absent, moments)

    def digests(self, phase: int, protocol: Protocol) -> dict[str, str]:
        """SHA-256 of the files of a phase, by their path within the folder."""
        return {name: sha256_of(self.path / name) for name in names_of(phase, protocol)}

    @property
    def exists(self) -> bool:
        """Whether a task was ever learned into it, or is being learned."""
        return self.identity.exists()

    def read(self) -> Assistant:
        """What the folder holds, from its first line to its last. Raises: RunFolderError."""
        try:
            about: Any = read_json(self.identity)
            if (about["format"], about["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {about['format']!r}, version {about['version']!r}")
            found = Assistant(
                self.path,
                str(about["model"]),
                str(about["found_at"]),
                {str(part): str(digest) for part, digest in about["fingerprint"].items()},
                bool(about["random_weights"]),
                Protocol.model_validate(about["settings"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError, CRMAError) as error:
            missing = isinstance(error, FileNotFoundError)
            raise RunFolderError(
                str(self.identity),
                got="no such file" if missing else f"{type(error).__name__}: {str(error)[:200]}",
                allowed=f"what `crma learn` of this version wrote (format {FORMAT} {VERSION})",
                remedy="name the folder that was given as --into" if missing else "restore the file from a copy",
            ) from error
        if not self.history.exists():
            for path, _ in self._numbered():
                raise _lost(self.history, path)
            return found
        for place, record in read_records(self.history):
            self._take(found, record, place)
        for name in [name for name in found.files if name.startswith("crma-")]:
            if int(name.removeprefix("crma-").removesuffix(".safetensors")) not in found.kept_versions:
                del found.files[name]
        for name, task in found.tasks.items():
            if (path := self.answers(task.record.phase)).exists():
                found.answers[name] = _answers(path)
        return found

    def _take(self, found: Assistant, record: Any, place: str) -> None:
        match record:
            case FolderRecord():
                if found.files or record.files.keys() != {self.IDENTITY}:
                    raise _damaged(place, f"a record of the folder with the files {', '.join(record.files) or 'none'}")
                found.files.update(record.files)
            case _ if not found.files:
                raise _damaged(place, "a record of another kind before that of the folder")
            case LearnedRecord():
                if record.phase != len(found.learned) or record.task in found.tasks:
                    raise _damaged(place, f"phase {record.phase}, task {record.task!r}")
                if record.files.keys() != names_of(record.phase, found.protocol):
                    raise _damaged(place, f"phase {record.phase} with the files {', '.join(record.files) or 'none'}")
                found.learned.append(record)
                found.files.update(record.files)
                found.tasks[record.task] = Taught(record, record.phase, record.own)
                known = record.versions.keys() == found.tasks.keys() >= record.checked.keys()
                if not known or max(record.versions.values()) > record.phase:
                    raise _damaged(place, f"versions {record.versions}, tasks {sorted(found.tasks)}")
                for name, version in record.versions.items():
                    found.tasks[name].version = version
                for name, check in record.checked.items():
                    task = found.tasks[name]
                    # with its own version it is what it was, even where another backend rounds otherwise
                    task.now = task.record.own if task.version == task.record.phase else check.now
            case ForgottenRecord():
                if record.task not in found.tasks:
                    raise _damaged(place, f"a task forgotten that is none: {record.task!r}")
                phase = found.tasks.pop(record.task).record.phase
                found.forgotten.append(record)
                for name in [*found.files]:
                    if name.startswith((f"task-{phase}/", f"texts-{phase}.")):
                        del found.files[name]

    def check_files(self, assistant: Assistant, of: Container[int] | None = None) -> None:
        """See that the files are what was recorded; of these phases only, and of the folder itself, if some are named.

        Raises: RunFolderError, naming the first file that is not.
        """
        for name, reason in self.changed_files(assistant, of):
            raise RunFolderError(
                str(self.path / name),
                got=reason,
                allowed=f"the file whose SHA-256 is in {self.history.name}",
                remedy="restore it from a copy, or forget its task and teach it again",
            )

    def changed_files(self, assistant: Assistant, of: Container[int] | None = None) -> Iterator[tuple[str, str]]:
        """The files that are not what was recorded, each with what is wrong."""
        for name, digest in assistant.files.items():
            number = name.partition("/")[0].partition(".")[0].partition("-")[2]
            if of is not None and number and not name.startswith("texts-") and int(number) not in of:
                continue
            try:
                if sha256_of(self.path / name, follow_links=False, to_load=True) != digest:
                    yield name, "bytes that do not give the recorded SHA-256"
            except FileNotFoundError:
                yield name, "no such file"
            except OSError as error:
                yield name, error.strerror or str(error)

    def claim(self, about: dict[str, Any]) -> None:
        """Write what the folder is, once, and the first line of its history."""
        atomic_write(self.identity, json.dumps({"format": FORMAT, "version": VERSION, **about}, indent=2).encode())
        append_record(
            self.history,
            {"kind": "folder", "format": FORMAT, "files": {self.IDENTITY: sha256_of(self.identity)}},
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As :meth:`LockedFolder.locked`; and clear away what no line of the history and no phase under way needs."""
        with super().locked():
            if self.identity.exists():
                self.tidy()
            yield

    def tidy(self) -> None:
        """Remove what no line of the history and no phase under way needs.

        Raises: RunFolderError where files are of a phase that the history does not speak of: it has lost lines.
        """
        found = self.read()
        under_way = self.underway.exists() and not self._is_behind(len(found.learned))
        if under_way and not self.checkpoint.exists():
            self.drop_phase(len(found.learned))  # nothing was computed yet that could be lost
            under_way = False
        if not under_way:
            for path in (self.checkpoint, self.underway):
                path.unlink(missing_ok=True)
        asked = {task.record.phase for task in found.tasks.values()}
        for path, phase in self._numbered():
            if under_way and phase == len(found.learned):
                continue  # whoever goes on with it, or gives it up, clears it away
            if phase >= len(found.learned):
                raise _lost(self.history, path)
            if phase in asked and path == self.answers(phase):
                continue
            names = [path.name] if path.is_file() else [f"{path.name}/{name}" for name in (CONFIG, WEIGHTS)]
            if not any(name in found.files for name in names):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not found.learned and not under_way:  # an attempt that ended before it held anything binds nobody
            self.history.unlink(missing_ok=True)
            self.identity.unlink(missing_ok=True)

    def _numbered(self) -> Iterator[tuple[Path, int]]:
        """What phases have written, each with its number."""
        for path in sorted(self.path.iterdir()):
            number = path.name.partition(".")[0].partition("-")[2]
            # exactly such a name, since a copy beside it, such as texts-0.jsonl.bak, is somebody's own
            if number.isdecimal() and path in {self.answers(int(number)), *self._of(int(number))}:
                yield path, int(number)

    def _of(self, phase: int) -> tuple[Path, ...]:
        """What a phase writes."""
        files = self.files(phase)
        return files.lora, files.crma, files.moments, self.texts(phase)

    @property
    def is_inheriting(self) -> bool:
        """Whether what is under way has begun, from the LoRA of an earlier task."""
        if not (self.underway.exists() and self.checkpoint.exists()):
            return False
        try:
            about: Any = read_json(self.underway)
            return bool(about["start"] != "fresh")
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def _is_behind(self, learned: int) -> bool:
        """Whether what is under way has been written into the history: a process was killed between the two."""
        try:
            about: Any = read_json(self.underway)
            return int(about["phase"]) < learned
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def drop_phase(self, phase: int) -> None:
        """Give up the phase under way."""
        lora, *others = self._of(phase)
        for path in (self.checkpoint, *others):
            path.unlink(missing_ok=True)
        shutil.rmtree(lora, ignore_errors=True)
        self.underway.unlink(missing_ok=True)  # last: what it speaks of is known to be unfinished


def _answers(path: Path) -> AnswersRecord:
    try:
        return AnswersRecord.model_validate(read_json(path, follow_links=False))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            str(path),
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            allowed="the sample answers that `crma learn` wrote",
            remedy="remove the file: nothing but the status shows it",
        ) from error


def names_of(phase: int, protocol: Protocol) -> set[str]:
    """The files that a phase writes, by their path within the folder."""
    names = {f"task-{phase}/{CONFIG}", f"task-{phase}/{WEIGHTS}", f"crma-{phase}.safetensors", f"texts-{phase}.jsonl"}
    return names if protocol.crma.data_budget is None else names | {f"moments-{phase}.safetensors"}


def is_assistant(path: Path | str) -> bool:
    """Whether a folder is an assistant's, and not a run's."""
    return (Path(path) / AssistantFolder.IDENTITY).is_file()


def _lost(history: Path, path: Path) -> RunFolderError:
    return RunFolderError(
        str(history),
        got=f"no line that speaks of {path.name}",
        allowed="a line for every phase whose files are there",
        remedy=f"restore {history.name} from a copy of the same time as the other files",
    )


def _damaged(place: str, got: str) -> RunFolderError:
    return RunFolderError(
        place, got=got, allowed="the lines that were written, in their order", remedy="restore the file from a copy"
    )
