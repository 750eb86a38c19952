"""Model folders that this program makes: once, in the cache folder, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from backends.finetune.models.cache_folder import cache_folder
from backends.finetune.models.folder import check_model_folder, missing_extra
from reference.errors import CRMAError, DiskSpaceError, ModelError


def build_once(name: str, build: Callable[[Path], None], *, room: str) -> Path:
    """The folder ``name`` of the cache folder; where it is not there yet, ``build`` fills it.

    It appears under its name only when it is complete, and two processes never build it at once. ``room``: how much it
    takes, in words.

    Raises: MissingPackageError, DiskSpaceError, ModelError for a cache folder that cannot be written and for a damaged
    model in it; and what ``build`` raises.
    """
    try:
        from filelock import FileLock

        folder = cache_folder() / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):  # the system frees it when its process ends, however it ends
            if not folder.exists():
                _build(folder, build)
    except CRMAError:
        raise
    except ImportError as error:
        raise missing_extra(error) from error
    except Exception as error:
        if (number := _system_error(error)) is None:
            raise
        raise _unwritable(cache_folder(), number, str(error).split("\n")[0], room) from error
    check_model_folder(folder)
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # what a killed build has left: we hold the lock
    building.mkdir()
    try:
        build(building)
        check_model_folder(building)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _system_error(error: Exception) -> int | None:
    """The operating system's number of it, if it has one; safetensors and tokenizers put it in the text."""
    in_rust = re.search(r"os error (\d+)", str(error))
    return int(in_rust[1]) if in_rust else getattr(error, "errno", None)


def _unwritable(cache: Path, number: int, got: str, room: str) -> CRMAError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(
            f"cache folder {cache}",
            got=got,
            allowed=f"{room} of free space",
            remedy="make room, or set CRMA_CACHE to a folder on another disk",
        )
    return ModelError(
        f"cache folder {cache}", got=got, allowed="a folder that can be written to", remedy="set CRMA_CACHE to one"
    )
