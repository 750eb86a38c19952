"""Rows of data as people have it: JSON, CSV and Parquet, compressed or not, folders of `datasets`, names on the Hub.

JSON and CSV are read here and not by `datasets`, which guesses types: a column of dates becomes time stamps, "007" the
number 7.0 and "NA" nothing. A text stays the text that it is.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.files import memory, parse_json
from backends.finetune.protocols.text_file import decoded, read_content
from backends.finetune.tasks.shapes import kind_of_value
from reference.errors import CRMAError, MissingPackageError, TaskDataError

Row = tuple[str, Mapping[str, Any]]  # its place, as "law.csv, line 3", and its fields
READ = (
    ".jsonl, .json, .csv, .tsv or .parquet, the first four also with .gz; a folder of `datasets`; or OWNER/NAME of a "
    "dataset on the Hugging Face Hub"
)
_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def read_rows(source: str | Path, *, split: str = "train") -> list[Row]:
    """The rows of a file, a folder or a dataset on the Hub.

    Args:
        source: a path, or OWNER/NAME. split: of a folder or a dataset on the Hub that has several.

    Raises: TaskDataError, which names the file and the row: a kind of file that is not read, an encoding, an archive, a
    damaged file, no rows; MissingPackageError for Parquet and datasets without the package `datasets`.
    Clauses: ERR-1, ERR-2.
    """
    path = Path(source)
    if path.is_dir():
        rows = _of_folder(path, split)
    elif not path.exists() and not path.suffix and _HUB.fullmatch(str(source)):
        rows = _of_dataset(str(source), split)
    else:
        rows = _of_file(path)
    if not rows:
        raise TaskDataError(str(source), got="no rows", allowed="at least one example", remedy="check the path")
    return rows


def _of_file(path: Path) -> list[Row]:
    kinds = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = kinds[-1:] == [".gz"]
    kind = (kinds[:-1] if packed else kinds)[-1:]
    if kind == [".parquet"] and not packed:
        return _of_parquet(path)
    readers = {".jsonl": _of_json_lines, ".ndjson": _of_json_lines, ".json": _of_json, ".csv": _of_csv, ".tsv": _of_csv}
    if not kind or kind[0] not in readers:
        raise TaskDataError(
            str(path), got=f"a file {path.suffix or 'without a suffix'}", allowed=READ, remedy="convert or rename it"
        )
    content = read_content(path, TaskDataError)
    text = decoded(_unpacked(content, path) if packed else content, path, TaskDataError)
    return list(readers[kind[0]](text, path))


def _unpacked(content: bytes, path: Path) -> bytes:
    """Raises: TaskDataError for a damaged file, or one that unpacks to more than this machine has memory."""
    most = int(min(memory(), 2**40))
    try:
        with gzip.open(io.BytesIO(content)) as file:
            text = file.read(most // 4)
            ends = not file.read(1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise TaskDataError(
            str(path), got=f"no whole gzip file ({error})", allowed="a file as gzip writes it", remedy="fetch it again"
        ) from error
    if not ends:
        raise TaskDataError(
            str(path),
            got=f"a file that unpacks to more than {most // 4:,} bytes",
            allowed="a quarter of this machine's memory",
            remedy="split it",
        )
    return text


def _of_json_lines(text: str, path: Path) -> Iterator[Row]:
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines if text.strip() else [], start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise TaskDataError(where, got="a blank line", allowed="one JSON object a line", remedy="remove the line")
        if number == 1 and line.strip() == "[":
            raise TaskDataError(
                where, got="a JSON array", allowed="one JSON object a line", remedy="name the file .json, or convert it"
            )
        yield where, _object(_json(line, where), where)


def _of_json(text: str, path: Path) -> Iterator[Row]:
    """An array of objects, or one object with an array in its one field or in "data", as some exports have it."""
    content = _json(text, str(path))
    if isinstance(content, dict):
        lists = [field for field, value in content.items() if isinstance(value, list)]
        chosen = "data" if "data" in lists else lists[0] if len(lists) == len(content) == 1 else None
        content = content[chosen] if chosen else content
    if not isinstance(content, list):
        raise TaskDataError(
            str(path),
            got=kind_of_value(content),
            allowed="an array of objects",
            remedy="put the objects in brackets, or name a file with one object a line .jsonl",
        )
    for number, row in enumerate(content, start=1):
        yield f"{path}, element {number}", _object(row, f"{path}, element {number}")


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise TaskDataError(
            where,
            got=_control_character(text) or f"no JSON ({error})",
            allowed="JSON",
            remedy="check quotes, commas and braces; a file with one object a line is named .jsonl",
        ) from error


def _control_character(text: str) -> str | None:
    """The first character that no JSON text may hold as itself, as an error says it."""
    found = next((character for character in text if character < " " and character not in "\t\r\n"), None)
    return found and f"the control character 0x{ord(found):02x}, which JSON writes as \\u{ord(found):04x}"


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TaskDataError(
            where, got=kind_of_value(value), allowed="an object with fields", remedy="write it in braces"
        )
    return value


def _of_csv(text: str, path: Path) -> Iterator[Row]:
    """Fields that are empty are left out, as a column of a table has them empty where another shape's are not."""
    delimiter = "\t" if ".tsv" in map(str.lower, path.suffixes[-2:]) else ","
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise TaskDataError(
                f"{path}, line 1",
                got=f"the columns {', '.join(map(repr, header))}",
                allowed="a different name for each column",
                remedy="write a first line with the names of the columns",
            )
        if len(header) == 1 and (others := [other for other in ";\t|," if other in header[0]]):
            raise TaskDataError(
                f"{path}, line 1",
                got=f"one column {header[0]!r:.100}, in which there is {others[0]!r}",
                allowed="columns parted by tabs in .tsv, and by commas in others",
                remedy="save the table with these, or rename the file",
            )
        line = reader.line_num + 1
        for values in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if len(values) != len(header):
                raise TaskDataError(
                    where,
                    got=f"{len(values)} fields",
                    allowed=f"{len(header)}, as in the first line",
                    remedy="put texts with commas, quotes or line breaks in quotes",
                )
            yield where, {name: value for name, value in zip(header, values, strict=True) if value != ""}
    except csv.Error as error:
        raise TaskDataError(
            f"{path}, line {reader.line_num}",
            got=f"no CSV ({error})",
            allowed="fields with commas, quotes or line breaks in quotes",
            remedy="save the table as CSV in UTF-8 again",
        ) from error
    finally:
        csv.field_size_limit(limit)


def _of_parquet(path: Path) -> list[Row]:
    content = read_content(path, TaskDataError)
    with _data_errors(str(path)):
        from pyarrow import BufferReader, parquet

        return _numbered(parquet.read_table(BufferReader(content)).to_pylist(), str(path))


def _of_folder(path: Path, split: str) -> list[Row]:
    """What `datasets` has saved; or the files of a folder whose names begin with the split, or else all of them."""
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        with _data_errors(str(path)):
            from datasets import load_from_disk

            saved = load_from_disk(str(path), keep_in_memory=True)
        return _numbered(_of_split(saved, split, str(path)), str(path))
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and set(file.suffixes) & _SUFFIXES]
    files = [file for file in files if file.name.startswith(split)] or files
    return [row for file in files for row in _of_file(file)]


def _of_dataset(name: str, split: str) -> list[Row]:
    with _data_errors(name):
        from datasets import load_dataset

        loaded = load_dataset(name)
    return _numbered(_of_split(loaded, split, name), name)


def _of_split(loaded: Any, split: str, where: str) -> Any:
    """Of a dataset with several splits the one that is asked for, or the only one."""
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded and len(loaded) != 1:
        raise TaskDataError(
            where,
            got=f"no split {split!r}",
            allowed=", ".join(map(str, loaded)) or "at least one split",
            remedy="name one of them with --split",
        )
    return loaded[split] if split in loaded else next(iter(loaded.values()))


def _numbered(rows: Any, where: str) -> list[Row]:
    return [(f"{where}, row {number}", row) for number, row in enumerate(rows, start=1)]


@contextmanager
def _data_errors(where: str) -> Iterator[None]:
    """Whatever `datasets` and pyarrow raise, as one error that names the source."""
    try:
        yield
    except CRMAError:
        raise
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            where,
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'data'",
            remedy="pip install 'crma[data]', or write the rows as .jsonl or .csv, which need no package",
        ) from error
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        is_offline = isinstance(error, ConnectionError) or "offline" in words.lower()
        raise TaskDataError(
            where,
            got=f"nothing that can be read ({type(error).__name__}: {words})",
            allowed=READ,
            remedy="fetch it on a machine with a network and name the file: this one reaches no Hub (HF_HUB_OFFLINE)"
            if is_offline
            else "check the name; datasets that bring their own code are not run",
        ) from error
