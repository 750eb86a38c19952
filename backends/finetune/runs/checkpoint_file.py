"""The file of a phase under way, whatever the framework: arrays and the progress as JSON, in safetensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.files import parse_json
from backends.sealed import metadata_of, read_sealed
from reference.errors import RunFolderError, StateFileError

NEEDED = {"phase", "losses", "gradient_norms", "seconds", "tokens", "spectral"}


def read_checkpoint(path: Path, phase: int) -> tuple[bytes, dict[str, Any]] | None:
    """A checkpoint and its ``progress``; None if there is no file, or one of another phase.

    Raises: RunFolderError if it is damaged, in whichever byte.
    """
    if not path.exists():
        return None
    try:
        data = read_sealed(path)
        progress = parse_json(metadata_of(data)["progress"])
    except (OSError, KeyError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(progress, dict) or not progress.keys() >= NEEDED:
        raise damaged(path, f"progress {str(progress)[:80]}")
    return (data, progress) if progress["phase"] == phase else None


def damaged(path: Path, got: str) -> RunFolderError:
    """What to say of a checkpoint that cannot be used."""
    return RunFolderError(
        str(path),
        got=got,
        allowed="a checkpoint of this run",
        remedy="delete this file and run the same command again: only the phase under way starts anew",
    )


def damaged_phase(folder: Path, got: str) -> RunFolderError:
    """What to say of a file of a finished task that cannot be used."""
    return RunFolderError(
        str(folder),
        got=got,
        allowed="what this run wrote",
        remedy="restore it from a copy, or start again in another --out",
    )


@contextmanager
def phase_state(path: Path) -> Iterator[Path]:
    """Say what is wrong with a stored state of the shared CRMA in the words of a run folder. Raises: RunFolderError."""
    try:
        yield path
    except StateFileError as error:
        raise damaged_phase(path, str(error.got)) from error
