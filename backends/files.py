"""Read a file that somebody else may have written, damaged, or replaced by something that is no file.

Every reader of the project that is given a path by a user, or by a folder from elsewhere, opens it here: a FIFO, a
device or a folder is refused at once rather than waited for, and a size beyond reason before anything is allocated.
The errors are OSError and ValueError, which each reader turns into the error of its own kind.
"""

import errno
import hashlib
import json
import math
import os
import stat
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

#: No JSON or TOML file that belongs to a model or a run is nearly as large.
TEXT_LIMIT = 256 * 2**20
_CHUNK = 2**20
# O_NONBLOCK: opening a named pipe does not wait for a writer. Windows knows O_BINARY alone.
_READING = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))


@contextmanager
def opened(path: Path | str, *, follow_links: bool = True) -> Iterator[BinaryIO]:
    """``path`` opened for reading, if it is a regular file.

    Args:
        follow_links: False refuses a symbolic link as the last part of the path.

    Raises: OSError, with a ``strerror`` that says what is there instead; also for a path with a NUL in it.
    """
    try:
        descriptor = os.open(path, _READING if follow_links else _READING | getattr(os, "O_NOFOLLOW", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"a path that no file can have ({error})", str(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a symbolic link, where a file belongs", str(path)) from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"{kind_of(mode)}, where a file belongs", str(path))
        yield file


def read_bytes(path: Path | str, *, limit: int | None = None, follow_links: bool = True) -> bytes:
    """The content of a regular file, in memory: what happens to the file later does not reach it.

    Raises: OSError; also where the file has more than ``limit`` bytes, or more than the machine has memory: a file of
    holes takes no room on a disk, whatever its size.
    """
    with opened(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"a file of {size:,} bytes, where at most {limit:,} make sense", str(path))
        if size > memory():
            raise _beyond_memory(size, path)
        try:
            return file.read()
        except MemoryError as error:
            raise _beyond_memory(size, path) from error


def memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _beyond_memory(size: int, path: Path | str) -> OSError:
    return OSError(errno.EFBIG, f"a file of {size:,} bytes, more than there is memory for", str(path))


def sha256_of(path: Path | str, *, follow_links: bool = True, to_load: bool = False) -> str:
    """SHA-256 of a regular file in hex, read piece by piece.

    Args:
        to_load: the file will be loaded; one larger than the machine's memory is refused rather than read for hours.

    Raises: OSError.
    """
    digest = hashlib.sha256()
    with opened(path, follow_links=follow_links) as file:
        if to_load and (size := os.fstat(file.fileno()).st_size) > memory():
            raise _beyond_memory(size, path)
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Raises: ValueError where two readers could disagree or none is served: a key that stands twice in one object, NaN
    or an infinity, nesting too deep for Python, an integer with thousands of digits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path | str, *, follow_links: bool = True) -> Any:
    """The value of a JSON file, as :func:`parse_json` reads it. Raises: OSError, ValueError."""
    return parse_json(read_bytes(path, limit=TEXT_LIMIT, follow_links=follow_links))


def read_toml(path: Path | str) -> dict[str, Any]:
    """The tables of a TOML file in UTF-8, with or without a byte order mark. Raises: OSError, ValueError."""
    return parse_toml(read_bytes(path, limit=TEXT_LIMIT).decode("utf-8-sig"))


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises: ValueError, in few words, also for nesting too deep for Python, and for an
    integer with thousands of digits, which nothing here could even print."""
    try:
        content = tomllib.loads(text)
        repr(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:  # which repeats names that are as long as the file
        raise ValueError(shortened(str(error))) from error
    return content


def shortened(text: str, most: int = 300) -> str:
    """Beginning and end of a text that may be as long as its author likes."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def printable(text: object, *, keep: str = "") -> str:
    """``text`` for a terminal or a page: characters that steer either (control codes, directions of writing, lone
    surrogates) or that nobody sees become escapes such as ``\\x1b``; those in ``keep`` stay.

    Names of tasks, files and models come from data; raw, they could move the cursor or hide a part of a line. Spaces of
    every width stay, and so do the two joiners without which Persian, Hindi and many emoji cannot be written.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character if character in keep or _is_harmless(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_harmless(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in "\u200c\u200d"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def kind_of(mode: int) -> str:
    """What there is instead of a file, in words, by ``st_mode``."""
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "something special")
