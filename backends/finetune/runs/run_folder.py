"""The run folder: one configuration, one process at a time, and files that are whole or absent.

RUN/run.json                            what the folder is a run of
RUN/results.jsonl                       one line per finished phase
RUN/SEED-CONDITION/task-N/              the LoRA adapter of task N, in PEFT's own format
RUN/SEED-CONDITION/crma-N.safetensors   the shared CRMA after phase N
RUN/SEED-CONDITION/mixing-N.safetensors the same for modular-unconstrained, which is no CRMA
RUN/SEED-CONDITION/consolidated-N.safetensors   what EWC holds on to after phase N; the last two phases only
RUN/SEED-CONDITION/moments-N.safetensors    with a data budget, the moment of the tokens of all tasks up to phase N
RUN/SEED-CONDITION/model-N.safetensors  the whole model after phase N of the condition full; the last two phases only
RUN/SEED-CONDITION/checkpoint.safetensors   the phase under way
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.atomic import atomic_write
from backends.files import read_bytes, read_json, sha256_of
from backends.finetune.runs.locked_folder import LockedFolder
from backends.finetune.runs.results import RunResults, read_results
from reference.errors import RunFolderError


class PhaseFiles(NamedTuple):
    """Where what a phase trained is written; which of these exist depends on the condition."""

    lora: Path
    crma: Path
    mixing: Path
    consolidated: Path
    model: Path
    moments: Path


class RunFolder(LockedFolder):
    """Paths in a run folder, and the check that it is ours and leads nowhere else. Raises: RunFolderError."""

    IDENTITY, FIELDS = "run.json", frozenset({"protocol", "backend", "model"})
    PLACES = ("", "*-*/", "*-*/task-*/", "pictures/")

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.results = self.path / "results.jsonl"

    def branch(self, seed: int, condition: str) -> Path:
        """Folder of one seed and condition."""
        return self.path / f"{seed}-{condition}"

    def lora(self, seed: int, condition: str, phase: int) -> Path:
        """PEFT folder of the adapter that phase ``phase`` trained."""
        return self.branch(seed, condition) / f"task-{phase}"

    def crma(self, seed: int, condition: str, phase: int) -> Path:
        """State file of the CRMA after phase ``phase``."""
        return self.branch(seed, condition) / f"crma-{phase}.safetensors"

    def files(self, seed: int, condition: str, phase: int) -> PhaseFiles:
        """All files of a phase."""
        branch = self.branch(seed, condition)
        rest = (branch / f"{name}-{phase}.safetensors" for name in ("mixing", "consolidated", "model", "moments"))
        return PhaseFiles(self.lora(seed, condition, phase), self.crma(seed, condition, phase), *rest)

    def checkpoint(self, seed: int, condition: str) -> Path:
        """Checkpoint of the phase under way."""
        return self.branch(seed, condition) / "checkpoint.safetensors"

    def digests(self, seed: int, condition: str, phase: int) -> dict[str, str]:
        """SHA-256 of every file of a phase, by its path within the run folder. Raises: OSError."""
        lora, *states = self.files(seed, condition, phase)
        paths = [path for path in (lora / CONFIG, lora / WEIGHTS, *states) if path.exists()]
        return {path.relative_to(self.path).as_posix(): sha256_of(path) for path in paths}

    def check_files(self, results: RunResults, branch: str | None = None) -> None:
        """:meth:`changed_files` must find none.

        Raises: RunFolderError, naming the first file that is missing or holds other bytes.
        """
        for name, reason in self.changed_files(results, branch):
            raise RunFolderError(
                str(self.path / name),
                got=reason,
                allowed="the file whose SHA-256 is in results.jsonl",
                remedy="restore it from a copy, or start again in another --out",
            )

    def changed_files(self, results: RunResults, branch: str | None = None) -> Iterator[tuple[str, str]]:
        """The recorded files, by path within the folder, that are not what was recorded, each with what is wrong.

        Args:
            branch: the folder of one seed and condition, if only its files, and those of no such folder, are asked for.
        """
        for name, digest in results.files.items():
            folder, _, file = name.rpartition("/")
            if folder and branch is not None and folder.partition("/")[0] != branch:
                continue
            if not self._is_own_name(name):
                yield name, "a name that no file of a run has"
                continue
            try:
                if sha256_of(self.path / name, follow_links=False, to_load=True) != digest:
                    yield name, "bytes that do not give the recorded SHA-256"
            except FileNotFoundError:
                if not _may_be_gone(file, folder, results):
                    yield name, "no such file"
            except OSError as error:
                yield name, error.strerror or str(error)

    def _is_own_name(self, name: str) -> bool:
        return not name.startswith("/") and all(part not in ("", ".", "..") for part in name.split("/"))

    def forget(self, seed: int, condition: str, finished: int) -> None:
        """Remove what the ``finished`` phases of a seed and condition needed, and nothing after them needs."""
        self.checkpoint(seed, condition).unlink(missing_ok=True)
        for phase in range(finished - 1):  # all of them: a kill may have left several
            files = self.files(seed, condition, phase)
            for path in (files.consolidated, files.model):
                path.unlink(missing_ok=True)

    def claim(self, name: str, identity: dict[str, Any]) -> None:
        """Write ``identity`` to the file ``name``; where work was done under another one, refuse.

        Raises: RunFolderError, naming the fields that differ; the folder is left as it is.
        """
        file = self.path / name
        wanted = json.loads(json.dumps(identity))
        holds_work = self._holds_work()
        if not holds_work:
            self.results.unlink(missing_ok=True)  # an attempt that ended before its first checkpoint binds nobody
        if holds_work and not file.exists() and name in read_results(self.path).files:
            raise RunFolderError(
                str(file),
                got="no such file, though the run has written it",
                allowed="the file whose SHA-256 is in results.jsonl",
                remedy="restore it from a copy, or start again in another --out",
            )
        if not holds_work or not file.exists():
            # In place of the old one: without run.json, for however short a time, the folder would be a stranger's.
            atomic_write(file, json.dumps(wanted, indent=2).encode())
            return
        try:
            found = read_json(file)
        except ValueError as error:
            raise RunFolderError(
                str(file), got=str(error), allowed="the JSON that this program wrote", remedy="choose another --out"
            ) from error
        differing = sorted(differences(found, wanted))
        if differing:
            raise RunFolderError(
                str(self.path),
                got="a run of another configuration: " + "; ".join(differing[:5]),
                allowed="the configuration that the folder was started with",
                remedy="choose another --out, or start the command as it was started first",
            )

    def _holds_work(self) -> bool:
        recorded = self.results.exists() and b'"kind": "phase"' in read_bytes(self.results, follow_links=False)
        return recorded or any(self.path.glob("*/checkpoint.safetensors"))


def checked_results(path: Path | str) -> RunResults:
    """The results of a run folder, whose files are those that were recorded. Raises: RunFolderError."""
    results = read_results(path)
    RunFolder(path).check_files(results)
    return results


def _may_be_gone(file: str, folder: str, results: RunResults) -> bool:
    """Whether :meth:`RunFolder.forget` removes a file: what only the phase that follows needs."""
    seed, _, condition = folder.partition("-")
    kind, _, phase = file.removesuffix(".safetensors").rpartition("-")
    if kind not in ("consolidated", "model") or not seed.isdecimal() or not phase.isdecimal():
        return False
    return int(phase) < len(results.phases_of(condition, int(seed))) - 1


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ, in words; a field that is missing is null, as one that a later version added."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield f"{path} was {found!r}, is {wanted!r}"
