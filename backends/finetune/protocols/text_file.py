"""A text file in UTF-8 that a user names; what else it turns out to be is said in words."""

from pathlib import Path

from backends.files import read_bytes
from reference.errors import CRMAError

#: What a file begins with, and what it is then
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x93NUMPY": "a NumPy file",
    b"\xff\xfe\x00\x00": "text in UTF-32",
    b"\x00\x00\xfe\xff": "text in UTF-32",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


def read_text(path: Path | str, error: type[CRMAError], *, limit: int | None = None) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Args:
        limit: the most bytes that make sense, if fewer than the machine has memory.

    Raises: ``error``, which names the file, what was found in it, and the line where it is a text in another encoding.
    """
    return decoded(read_content(path, error, limit=limit), path, error)


def read_content(path: Path | str, error: type[CRMAError], *, limit: int | None = None) -> bytes:
    """The bytes of a file. Raises: ``error``, which names the file."""
    try:
        return read_bytes(path, limit=limit)
    except OSError as failure:
        raise error(
            str(path),
            got=failure.strerror or type(failure).__name__,
            allowed="a file that can be read",
            remedy="check the spelling; a relative path starts at the folder that the command runs in",
        ) from failure


def decoded(content: bytes, path: Path | str, error: type[CRMAError]) -> str:
    """As :func:`read_text`, of what ``path`` holds."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        found = _other_kind(content)
        line = content.count(b"\n", 0, failure.start) + 1
        raise error(
            str(path) if found else f"{path}, line {line}",
            got=found or f"byte 0x{content[failure.start]:02x}, which is not UTF-8",
            allowed="text in UTF-8",
            remedy="unpack or convert it first" if found else "save the file as UTF-8",
        ) from failure
    if "\x03" in text[:4] and (found := _other_kind(content)):  # an archive of texts can be text as well
        raise error(str(path), got=found, allowed="text in UTF-8", remedy="unpack or convert it first")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(
            str(path),
            got=_other_kind(content) or f"a NUL byte in line {line}",
            allowed="text in UTF-8",
            remedy="convert it to UTF-8 text first",
        )
    return text


def _other_kind(content: bytes) -> str | None:
    """What a file is that is no text in UTF-8, where that can be told."""
    begins = sorted((begin for begin in _BEGINNINGS if content.startswith(begin)), key=len)
    if begins:
        return _BEGINNINGS[begins[-1]]
    # Latin text in UTF-16 without a byte order mark: every other byte is 0
    half = content[: min(len(content) // 2 * 2, 4096)]
    is_utf_16 = max(half[::2].count(0), half[1::2].count(0)) > len(half) // 4
    return "text in UTF-16 without a byte order mark" if is_utf_16 else None
