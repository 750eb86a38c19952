"""Atomic files: a reader sees the old content or the new, never half of it. Clauses: STATE-3, ERR-4."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reference.errors import DiskSpaceError

# Windows has neither O_NOFOLLOW nor O_CLOEXEC; O_EXCL alone refuses a link there.
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path``, fsync it, and rename it into place.

    The temporary file has a name that cannot be foretold and is made anew, so that a link which lies in the folder is
    never written through; a link at ``path`` itself is replaced, and what it points to is left alone.

    Raises: DiskSpaceError if there is no room; the old file stays as it was and the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    with disk_space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, _NEW_FILE, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
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
