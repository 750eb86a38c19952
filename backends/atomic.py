"""Atomic files: a reader sees the old content or the new, never half of it. Clauses: STATE-3, ERR-4. Source: ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reference.errors import DiskSpaceError


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path``, fsync it, and rename it into place.

    Raises: DiskSpaceError if there is no room; the old file stays as it was and the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_space_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into DiskSpaceError; other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskSpaceError(
            str(path),
            got=error.strerror,
            allowed="enough free disk space",
            remedy="free some space and run the same command again; a run folder resumes from its last checkpoint",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # other systems cannot open a folder for fsync
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
