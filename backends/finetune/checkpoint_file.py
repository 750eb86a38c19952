"""The file of a phase under way, whatever the framework: arrays and the progress as JSON, in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reference.errors import RunFolderError


def read_progress(path: Path) -> dict[str, Any] | None:
    """The ``progress`` of a checkpoint; None if there is no file. Raises: RunFolderError if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
            return progress
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def damaged(path: Path, got: str) -> RunFolderError:
    """What to say of a checkpoint that cannot be used."""
    return RunFolderError(
        str(path),
        got=got,
        allowed="a checkpoint of this run",
        remedy="delete this file and run the same command again: only the phase under way starts anew",
    )


def damaged_phase(folder: Path, got: str) -> RunFolderError:
    """What to say of the adapter of a finished task that cannot be used."""
    return RunFolderError(
        str(folder),
        got=got,
        allowed="the PEFT adapter that this run wrote",
        remedy="restore the folder from a copy, or start again in another --out",
    )
