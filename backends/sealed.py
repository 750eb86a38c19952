"""A safetensors file that carries the SHA-256 of itself, so that damage to any byte of it is noticed.

The metadata ``sha256`` is the digest of the whole file with 64 zeros in its place. Any reader of safetensors reads such
a file; ours refuse one whose bytes do not give the digest, and read it into memory, not as a map of the file.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.files import parse_json, read_bytes

_EMPTY = "0" * 64


def seal(data: bytes, metadata: Mapping[str, str] | None = None) -> bytes:
    """The safetensors file ``data`` with ``metadata`` and its digest; equal contents give equal bytes."""
    empty = with_metadata(data, {**(metadata or {}), "sha256": _EMPTY})
    return empty.replace(_field(_EMPTY), _field(hashlib.sha256(empty).hexdigest()), 1)


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The safetensors file ``data`` with these metadata, in order: the library's order changes from run to run."""
    header, end = _header(data)
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[end:]


def read_sealed(path: Path, *, required: bool = True) -> bytes:
    """The bytes of a sealed file, checked.

    Args:
        required: whether a file without a seal, as other programs write, is refused.

    Raises: OSError; ValueError for a file whose bytes are not those that were sealed.
    """
    data = read_bytes(path)
    said = metadata_of(data).get("sha256")
    if said is None:
        if required:
            raise ValueError("no sha256 in its metadata: it was written by an earlier version, or is damaged")
        return data
    end = _header(data)[1]
    place = data.find(_field(said), 0, end)
    empty = data[:place] + _field(_EMPTY) + data[place + len(_field(said)) :]
    if place < 0 or len(said) != 64 or hashlib.sha256(empty).hexdigest() != said:
        raise ValueError("bytes that do not give the sha256 in its metadata (damaged?)")
    return data


def metadata_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file. Raises: ValueError."""
    metadata = _header(data)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that are no texts")
    return metadata


def _field(digest: str) -> bytes:
    return f'"sha256":"{digest}"'.encode()


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    if len(data) < 8:
        raise ValueError("a file cut short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    header = parse_json(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    return header, 8 + length
