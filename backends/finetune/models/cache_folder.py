"""Where this program keeps what it can make again: ``$CRMA_CACHE``, or else the user's cache folder."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from reference.errors import CRMAError, DiskSpaceError, ModelError


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CRMA_CACHE") or user_cache_dir("crma")).expanduser()


def built_once(name: str, build: Callable[[Path], None], *, room: str) -> Path:
    """The folder ``name`` of the cache, which ``build`` fills where it is not there yet.

    It appears under its name only when it is complete, and two processes never build it at once.

    Args:
        room: how much ``build`` needs, as an error says it.

    Raises: DiskSpaceError without room; ModelError where the cache cannot be written; what ``build`` raises.
    """
    from filelock import FileLock

    folder = cache_folder() / name
    building = folder.with_name(f"{name}.building")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):  # the system frees it when its process ends, however it ends
            if not folder.exists():
                shutil.rmtree(building, ignore_errors=True)  # what a killed build has left: we hold the lock
                building.mkdir()
                try:
                    build(building)
                    os.replace(building, folder)
                finally:
                    shutil.rmtree(building, ignore_errors=True)
    except CRMAError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if in_rust := re.search(
            r"os error (\d+)", str(error)
        ):  # safetensors and tokenizers have the number in the text
            number = int(in_rust[1])
        if number is None and not isinstance(error, OSError):
            raise
        is_full = number in (errno.ENOSPC, errno.EDQUOT)
        raise (DiskSpaceError if is_full else ModelError)(
            f"cache folder {folder.parent}",
            got=str(error).split("\n")[0],
            allowed=f"{room} of free space" if is_full else "a folder that can be written to",
            remedy=("make room, or " if is_full else "") + "set CRMA_CACHE to a folder elsewhere",
        ) from error
    return folder
