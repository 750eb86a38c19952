"""SHA-256 of large files, computed once: later runs find it in the cache folder."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from backends.atomic import atomic_write
from backends.files import read_bytes, sha256_of
from backends.finetune.models.cache_folder import cache_folder
from reference.errors import DiskSpaceError

#: below this, looking into the cache takes as long
_LARGE = 2**22


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file in hex.

    It is kept under the file's device, inode, size and times, so that a file with other content is never taken for the
    old one: no program can set the time at which an inode was last changed. An entry of the cache that is damaged, or a
    cache that cannot be written, costs the time to read the file and nothing else. Raises: OSError.
    """
    about = os.stat(path)
    if about.st_size < _LARGE:
        return sha256_of(path)
    fields = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    key = hashlib.sha256(repr((str(path.resolve()), *fields)).encode()).hexdigest()
    entry = cache_folder() / "digests" / key
    with suppress(OSError, ValueError):
        digest, _, check = read_bytes(entry, limit=256).decode("ascii").partition(" ")
        if check == _check(key, digest):
            return digest
    digest = sha256_of(path)
    with suppress(OSError, DiskSpaceError):  # the digest is right whether or not it can be kept
        atomic_write(entry, f"{digest} {_check(key, digest)}".encode())
    return digest


def _check(key: str, digest: str) -> str:
    """Ties an entry's digest to its key, so that a damaged entry is not believed."""
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()
