"""``results.jsonl`` of a run folder: its schema, its reader, and the one way to append to it.

One JSON object per line; ``kind`` is ``run`` (once per start of the command), ``base`` (once per seed), ``phase`` (once
per finished phase) or ``panel``. Other kinds are left alone, so that a newer version's file can still be read.

The last field of a line, ``sha256``, is the digest of that of the line before and of the line's own text up to this
field: a line that was changed, dropped or moved is noticed. Last lines may be missing, as after a crash.
Clauses: CL-1..CL-7.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

import reference
from backends.atomic import disk_space_errors
from backends.files import kind_of, parse_json, read_bytes
from backends.finetune.methods.conditions import in_order, shares_what_trains
from backends.finetune.runs.assistant_records import FolderRecord, ForgottenRecord, LearnedRecord
from backends.finetune.runs.links import refuse_links
from backends.finetune.runs.records import BaseRecord, PanelRecord, PhaseRecord, RunRecord, TextRecord
from reference.errors import DiskSpaceError, NonFiniteError, RunFolderError

RESULTS_NAME = "results.jsonl"
SNAPSHOTS = "+snapshots"  # behind a condition: each task answered with a copy kept after its own phase
# O_NOFOLLOW, which Windows lacks: never through a link to a file elsewhere. O_NONBLOCK: never wait for a pipe.
_APPENDING = os.O_RDWR | os.O_CREAT | sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY"))
_SEAL = re.compile(rb', "sha256": "([0-9a-f]{64})"\}$', re.MULTILINE)
_REMEDY = "restore the file from a copy, or start again in another run folder"
_KINDS: dict[str, type[BaseModel]] = {
    "run": RunRecord,
    "base": BaseRecord,
    "phase": PhaseRecord,
    "panel": PanelRecord,
    "folder": FolderRecord,
    "learned": LearnedRecord,
    "forgotten": ForgottenRecord,
}


@dataclass(frozen=True)
class RunResults:
    """All records of one run folder. A phase that was repeated after a crash counts once, the last time.

    ``files``: SHA-256 of every file that a record speaks of, by its path within the run folder.
    """

    run: RunRecord
    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    phases: dict[tuple[str, int, int], PhaseRecord]
    base: dict[int, BaseRecord] = field(default_factory=dict)
    panels: dict[tuple[str, int], PanelRecord] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return self.run.tasks

    @property
    def has_canaries(self) -> bool:
        """Whether any phase was asked for canaries."""
        return any(record.exact_match for record in self.phases.values())

    @property
    def with_snapshots(self) -> list[str]:
        """The conditions; behind each whose tasks share what trains its snapshots, which no further training tells."""
        found = []
        for name in self.conditions:
            found.append(name)
            if shares_what_trains(name) and not (name == "naive" and "frozen-inherit" in self.conditions):
                found.append(name + SNAPSHOTS)
        return found

    def parameters(self, condition: str) -> dict[str, int]:
        """Trainable values of one condition by kind; empty before its first phase is finished."""
        records = (record for (name, _, _), record in self.phases.items() if name == condition)
        return next((record.parameters for record in records), {})

    def phases_of(self, condition: str, seed: int) -> list[PhaseRecord]:
        """The finished phases in order, up to the first one that is missing."""
        finished, condition = [], condition.removesuffix(SNAPSHOTS)
        for phase in range(len(self.tasks)):
            if (record := self.phases.get((condition, seed, phase))) is None:
                break
            finished.append(record)
        return finished

    def texts(self, seeds: Sequence[int] | None = None) -> dict[str, dict[str, TextRecord]]:
        """What was cut of each task's texts, by side, summed over ``seeds`` (by default all): each draws its own."""
        found: dict[str, dict[str, TextRecord]] = {task: {} for task in self.tasks}
        for seed in self.seeds if seeds is None else seeds:
            for phase, task in enumerate(self.tasks):
                records = (self.phases.get((condition, seed, phase)) for condition in self.conditions)
                for side, texts in next((record.texts for record in records if record and record.texts), {}).items():
                    found[task][side] = found[task][side] + texts if side in found[task] else texts
        return found

    def complete_seeds(self, condition: str) -> list[int]:
        """The seeds for which ``condition`` has finished every phase."""
        return [seed for seed in self.seeds if len(self.phases_of(condition, seed)) == len(self.tasks)]

    def holdout_matrix(self, condition: str, seed: int) -> NDArray[np.float64]:
        """(T, T), ``[phase, task]``, nats per answer token; NaN for tasks not yet seen and phases not yet finished."""
        return self._matrix(
            condition, seed, lambda record: {task: record.holdout[task] for task in self.tasks[: record.phase + 1]}
        )

    def text_losses(self, condition: str, seed: int) -> list[NDArray[np.float64]] | None:
        """Per task (texts, 3): the loss of each held-out text after the task's own phase and after the last one,
        in nats summed over its answer tokens, and their number. None while a phase is missing, or where files of an
        earlier version lack them. Clause: CL-13."""
        phases = self.phases_of(condition, seed)
        if len(phases) < len(self.tasks) or any(task not in phases[-1].text_losses for task in self.tasks):
            return None
        last = [record if condition.endswith(SNAPSHOTS) else phases[-1] for record in phases]
        columns = [
            (own.text_losses[own.task], final.text_losses[own.task], own.answer_tokens)
            for own, final in zip(phases, last, strict=True)
        ]
        return [np.array(task, np.float64).T for task in columns]

    def exact_match_matrix(self, condition: str, seed: int) -> NDArray[np.float64]:
        """(T, T), ``[phase, task]``, fractions of canaries recalled; NaN for what was not asked and phases to come."""
        return self._matrix(condition, seed, lambda record: record.exact_match)

    def _matrix(
        self, condition: str, seed: int, values: Callable[[PhaseRecord], dict[str, float]]
    ) -> NDArray[np.float64]:
        matrix = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for record in self.phases_of(condition, seed):
            matrix[record.phase] = [values(record).get(task, np.nan) for task in self.tasks]
        if condition.endswith(SNAPSHOTS):
            seen = np.isfinite(matrix)
            matrix[seen] = np.broadcast_to(np.diag(matrix), matrix.shape)[seen]
        return matrix

    def metrics(self, condition: str, seed: int) -> reference.ContinualMetrics | None:
        """Drift, final holdout loss and backward transfer; None while a phase is missing. Clauses: CL-2, CL-3."""
        if len(self.phases_of(condition, seed)) < len(self.tasks):
            return None
        return reference.continual_metrics(self.holdout_matrix(condition, seed))

    def advantage(self, condition: str, seed: int) -> float | None:
        """Over FROZEN of the same seed, as a fraction; None while either is missing. Clause: CL-4."""
        frozen, own = self.metrics("frozen", seed), self.metrics(condition, seed)
        return None if frozen is None or own is None else reference.advantage(frozen.final_holdout, own.final_holdout)

    def later_advantage(self, condition: str, seed: int) -> float | None:
        """The same over all tasks but the first, where nothing learned before can help."""
        if len(self.tasks) < 2 or self.advantage(condition, seed) is None:
            return None
        frozen, own = (self.holdout_matrix(name, seed)[-1, 1:].mean() for name in ("frozen", condition))
        return reference.advantage(frozen, own)

    def exact_match_transfer(self, condition: str, seed: int) -> float | None:
        """Mean change of the fraction of canaries recalled, since a task's own phase, over prior tasks that have any.

        None while a phase is missing, or where no prior task has canaries. Clause: CL-7.
        """
        matrix, last = self.exact_match_matrix(condition, seed), len(self.tasks) - 1
        asked = [task for task in range(last) if np.isfinite(matrix[task:, task]).all()]
        if not asked:
            return None
        matrix[last, last] = 0.0  # counts for nothing, and the last task may have no canaries
        chosen = [*asked, last]
        return reference.exact_match_transfer(matrix[np.ix_(chosen, chosen)])


def read_results(path: Path | str) -> RunResults:
    """Read ``results.jsonl``, given as the file or as its run folder. A last line cut short by a crash is left out.

    Raises: RunFolderError if the file is missing or holds no ``run`` record, or naming the line that is damaged; as
    :func:`backends.finetune.runs.links.refuse_links`.
    """
    file = Path(path)
    if os.path.isdir(file):  # unlike Path.is_dir, False for a name that is too long
        refuse_links(file)
        file = file / RESULTS_NAME
    runs: list[RunRecord] = []
    phases: dict[tuple[str, int, int], PhaseRecord] = {}
    base: dict[int, BaseRecord] = {}
    panels: dict[tuple[str, int], PanelRecord] = {}
    files: dict[str, str] = {}
    for place, record in read_records(file):
        match record:
            case RunRecord() as run:
                runs.append(run)
                files |= run.files
                if run.tasks != runs[0].tasks:
                    _damaged(place, f"tasks {run.tasks}", f"the tasks of the first line, {runs[0].tasks}")
            case PhaseRecord() as phase:
                _check_phase(phase, runs, place)
                phases[phase.condition, phase.seed, phase.phase] = phase
                files |= phase.files
            case BaseRecord() as bare:
                base[bare.seed] = bare
            case PanelRecord() as panel:
                panels[panel.condition, panel.seed] = panel
    if not runs:
        _damaged(str(file), "no record of kind 'run'", "a results file that starts with one")
    conditions = {name: None for run in runs for name in run.conditions} | {key[0]: None for key in phases}
    seeds = {seed: None for run in runs for seed in run.seeds} | {key[1]: None for key in phases}
    return RunResults(runs[-1], in_order(conditions), tuple(seeds), phases, base, panels, files)


def read_records(file: Path) -> Iterator[tuple[str, BaseModel]]:
    """The records of a file that :func:`append_record` has written, each with its place. A last line cut short by a
    crash is left out, and so are records of kinds that this version does not know.

    Raises: RunFolderError if the file cannot be read, or naming the line that is damaged.
    """
    try:
        *lines, tail = read_bytes(file, follow_links=False).split(b"\n")
    except OSError as error:
        raise RunFolderError(
            str(file),
            got=error.strerror or str(error),
            allowed=f"a {file.name} that can be read",
            remedy="name a folder in which `crma finetune` or `crma learn` was started",
        ) from error
    if _is_whole(tail):
        lines.append(tail)
    digest = ""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{file}, line {number}"
            digest, entry = _verified(line, digest, place)
            if (record := _validated(entry, place)) is not None:
                yield place, record


def append_record(path: Path | str, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line and wait until it is on the disk. A half line left by a crash is cut off first.

    NumPy scalars and arrays become JSON numbers and lists. A failed append leaves the file as it was.

    Raises: NonFiniteError for NaN or infinity, RunFolderError for a record that :func:`read_results` would refuse or
    a file that cannot be written, DiskSpaceError when the disk is full.
    """
    file = Path(path)
    try:
        line = json.dumps(record, allow_nan=False, default=_plain).encode()
    except ValueError as error:
        raise NonFiniteError(
            f"record for {file.name}",
            got=str(error),
            allowed="finite numbers",
            remedy="stop the run at the step that diverged, with a lower learning rate",
        ) from error
    _validated(json.loads(line), f"record for {file.name}")
    try:
        with disk_space_errors(file):
            _append_line(file, line)
    except DiskSpaceError:
        raise
    except OSError as error:
        raise RunFolderError(
            str(file),
            got=error.strerror or str(error),
            allowed="a file that can be appended to",
            remedy="check the run folder's permissions and resume",
        ) from error


def _append_line(file: Path, line: bytes) -> None:
    descriptor = os.open(file, _APPENDING, 0o644)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            what = "a file that has a second name, a hard link" if found.st_nlink > 1 else kind_of(found.st_mode)
            raise OSError(errno.EINVAL, f"{what}, where a file of this run alone belongs", str(file))
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            content = stream.read()
        tail = content[content.rfind(b"\n") + 1 :]
        whole = len(content) if _is_whole(tail) else len(content) - len(tail)
        waiting = (b"\n" if whole and content[whole - 1 : whole] != b"\n" else b"") + _sealed(line, content[:whole])
        os.ftruncate(descriptor, whole)
        os.lseek(descriptor, whole, os.SEEK_SET)
        try:
            while waiting:
                waiting = waiting[os.write(descriptor, waiting) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, whole)
            raise
    finally:
        os.close(descriptor)


def _is_whole(tail: bytes) -> bool:
    """Whether a line without a line end is complete: no proper beginning of a JSON object parses."""
    try:
        return isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return False


def _sealed(line: bytes, before: bytes) -> bytes:
    """The line with its digest, behind the content ``before``."""
    seals = _SEAL.findall(before)
    digest = hashlib.sha256((seals[-1] if seals else b"") + line[:-1]).hexdigest()
    return line[:-1] + b', "sha256": "' + digest.encode() + b'"}\n'


def _verified(line: bytes, before: str, place: str) -> tuple[str, dict[str, Any]]:
    """The digest and the content of a line behind one with the digest ``before``."""
    entry = _parsed(line, place)
    found = _SEAL.search(line)
    if found is None:
        _damaged(place, "no sha256 at its end", "a line as this version writes it; earlier versions wrote no digests")
    digest = hashlib.sha256(before.encode() + line[: found.start()]).hexdigest()
    if found[1].decode() != digest:
        _damaged(place, "content that does not give its sha256", "the lines that were written, in their order")
    return digest, entry


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        _damaged(place, f"{line[:60].decode(errors='replace')!r} ({error})", "one JSON object per line")
    if not isinstance(entry, dict):
        _damaged(place, f"a JSON {type(entry).__name__}", "one JSON object per line")
    return entry


def _validated(entry: dict[str, Any], place: str) -> BaseModel | None:
    """The record of a line; None for another kind."""
    if (model := _KINDS.get(str(entry.get("kind")))) is None:
        return None
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        _damaged(place, f"{entry.get('kind')} record with a faulty {field}", f"{field}: {first['msg']}")


def _check_phase(record: PhaseRecord, runs: list[RunRecord], place: str) -> None:
    if not runs:
        _damaged(place, "a phase before any 'run' record", "a 'run' record first")
    tasks = runs[-1].tasks
    if record.phase >= len(tasks) or tasks[record.phase] != record.task:
        _damaged(place, f"phase {record.phase} of task {record.task!r}", f"phases in the order of the tasks {tasks}")
    if missing := [task for task in tasks[: record.phase + 1] if task not in record.holdout]:
        _damaged(place, f"no holdout loss for {missing}", "a holdout loss of every task seen so far")


def _damaged(place: str, got: str, allowed: str) -> NoReturn:
    raise RunFolderError(place, got=got, allowed=allowed, remedy=_REMEDY)


def _plain(value: object) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a results record is neither JSON nor NumPy")
