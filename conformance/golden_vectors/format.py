"""The format of golden vectors: a group of cases is one JSON header and one raw little-endian data file.

See spec/65-golden-vectors.md. Clauses: VEC-1, VEC-2, VEC-6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import spec
from backends.files import parse_json, read_bytes
from reference import SPEC_VERSION
from reference.errors import CRMAError

if TYPE_CHECKING:  # that module needs hypothesis, reading the files does not
    from conformance.golden_vectors.cases import Case

Array = NDArray[Any]
Files = Mapping[str, bytes]
FOLDER = Path(spec.__file__).resolve().parent / "vectors"
FORMAT = {"format": "crma-vectors", "format_version": 1}
INDEX = "index.json"
FIELDS = ("name", "operation", "iterations", "file", "refuse", "or_nan", "not_finite")
#: NumPy has no bfloat16 of its own: its bits are kept as uint16
DTYPES: dict[str, Any] = {"<f8": np.float64, "<f4": np.float32, "<f2": np.float16, "<bf16": np.uint16}
TAGS = {np.dtype(kind).name: tag for tag, kind in DTYPES.items()}


class GoldenVectorError(CRMAError):
    """A file of golden vectors is missing, damaged, or not what the reference computes."""


class StoredArray(NamedTuple):
    """``entry``: what the header says about it, with the tolerance of an output."""

    values: Array
    entry: dict[str, Any]


class StoredCase(NamedTuple):
    """``about``: the header's fields of the case; ``arrays`` by name; ``file``: the bytes of its state file, if any."""

    group: str
    about: dict[str, Any]
    arrays: dict[str, StoredArray]
    file: bytes

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` tries it: of K = 1, 3 and 20, for each of which a port may compile, it takes the last."""
        return bool(self.about.get("iterations") not in (1, 3))

    def of_role(self, role: str) -> dict[str, StoredArray]:
        return {name: array for name, array in self.arrays.items() if array.entry["role"] == role}


def pack(group: str, cases: list[Case]) -> dict[str, bytes]:
    """The header and the data file of one group. Equal inputs are stored once. Clauses: VEC-1, VEC-2."""
    data = bytearray()
    offsets: dict[tuple[str, bytes], int] = {}

    def stored(array: Array) -> dict[str, Any]:
        tag, raw = TAGS[array.dtype.name], array.astype(array.dtype.newbyteorder("<")).tobytes()
        offset = len(data) + -len(data) % 8  # a multiple of 8, so that a program may point into the file
        data.extend(b"\0" * (offset - len(data)) + raw)
        return {"dtype": tag, "shape": list(array.shape), "offset": offset, "bytes": len(raw)}

    def shared(array: Array) -> dict[str, Any]:
        key = (TAGS[array.dtype.name], array.tobytes())
        if key not in offsets:
            offsets[key] = stored(array)["offset"]
        return {"dtype": key[0], "shape": list(array.shape), "offset": offsets[key], "bytes": len(key[1])}

    lines = []
    for case in cases:
        entries = {name: {"role": "input", **shared(array)} for name, array in case.inputs.items()}
        for name, output in case.outputs.items():
            bounds = {dtype: {"relative": r, "absolute": a} for dtype, (r, a) in output.bounds.items()}
            entries[name] = {"role": "output", **stored(output.values), "tolerance": bounds, "row": output.row}
        fields = {key: getattr(case, key) for key in FIELDS} | {"clauses": list(case.clauses), "drawn": case.drawn}
        about = json.dumps({key: value for key, value in fields.items() if value not in (None, "", {})})[:-1]
        arrays = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        lines.append(f'  {about}, "arrays": {{\n{arrays}\n  }}}}')
    digest = hashlib.sha256(data).hexdigest()
    about_data = {"group": group, "data": f"{group}.bin", "data_bytes": len(data), "data_sha256": digest}
    return {f"{group}.json": encode_json(about_data, "cases", lines), f"{group}.bin": bytes(data)}


def encode_json(fields: dict[str, Any], name: str, lines: list[str]) -> bytes:
    """A header: one line for each field, and the lines of one list. Clause: VEC-1."""
    fields = FORMAT | {"spec_version": SPEC_VERSION} | fields
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    return ("{\n" + ",\n".join([*parts, f' "{name}": [\n' + ",\n".join(lines) + "\n ]"]) + "\n}\n").encode()


def load_files(folder: Path = FOLDER) -> dict[str, bytes]:
    """File name -> bytes, of everything but the README. Raises: GoldenVectorError if the folder cannot be read."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.is_dir() and path.name != "README.md")
        return {path.name: read_bytes(path) for path in paths}
    except OSError as error:
        raise _damaged(str(folder), error.strerror or str(error), "a folder of golden vectors") from error


def read(files: Files) -> Iterator[StoredCase]:
    """All cases that the index lists. Raises: GoldenVectorError, naming the file and what is wrong. Clause: VEC-6."""
    for listed in read_header(files, INDEX).get("groups", []):
        yield from read_group(files, listed["header"])


def read_group(files: Files, name: str) -> Iterator[StoredCase]:
    """The cases of one header. Raises: GoldenVectorError. Clauses: VEC-1, VEC-6."""
    header = read_header(files, name)
    try:
        data_name = header["data"]
        data = _file(files, data_name)
        if len(data) != header["data_bytes"]:
            raise _damaged(data_name, f"{len(data)} bytes", f"{header['data_bytes']}, as {name} says")
        digest, wanted = hashlib.sha256(data).hexdigest(), header["data_sha256"]
        if digest != wanted:
            raise _damaged(data_name, f"SHA-256 {digest[:16]}...", f"{wanted[:16]}..., as {name} says")
        for case in header["cases"]:
            arrays = {key: StoredArray(_array(name, key, entry, data), entry) for key, entry in case["arrays"].items()}
            yield StoredCase(header["group"], case, arrays, _file(files, case["file"]) if "file" in case else b"")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, GoldenVectorError):
            raise
        raise _damaged(name, f"{type(error).__name__}: {error}", "the fields of spec/65-golden-vectors.md") from error


def read_header(files: Files, name: str) -> dict[str, Any]:
    """The JSON of one header. Raises: GoldenVectorError."""
    try:
        header = parse_json(_file(files, name))
    except ValueError as error:
        raise _damaged(name, f"no JSON ({error})", "a JSON header") from error
    got = {key: header.get(key) for key in FORMAT} if isinstance(header, dict) else type(header).__name__
    if got != FORMAT:
        raise _damaged(name, str(got), str(FORMAT))
    return dict(header)


def _array(header: str, name: str, entry: dict[str, Any], data: bytes) -> Array:
    if entry["dtype"] not in DTYPES:
        raise _damaged(f"{header}, {name}", f"dtype {entry['dtype']!r}", ", ".join(DTYPES))
    dtype = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")
    count, begin = int(np.prod(entry["shape"], dtype=np.int64)), entry["offset"]
    if entry["bytes"] != count * dtype.itemsize or not 0 <= begin <= len(data) - entry["bytes"]:
        got = f"{entry['bytes']} bytes at {begin} for shape {entry['shape']}"
        raise _damaged(f"{header}, {name}", got, f"what the shape needs, within the {len(data)} bytes of data")
    raw = data[begin : begin + entry["bytes"]]
    return np.asarray(np.frombuffer(raw, dtype).reshape(entry["shape"]).astype(DTYPES[entry["dtype"]]))


def _file(files: Files, name: str) -> bytes:
    if name not in files:
        raise _damaged(name, "no such file", "a file of golden vectors")
    return files[name]


def _damaged(field: str, got: str, allowed: str) -> GoldenVectorError:
    remedy = "take the file from the release again, or write all anew: python -m conformance.golden_vectors"
    return GoldenVectorError(field, got=got, allowed=allowed, remedy=remedy)
