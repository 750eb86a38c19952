"""Print the JSON of ``pytest bench/ --benchmark-json=FILE.json`` as Markdown: accuracy beside time.

python -m bench.table FILE.json
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.files import printable, read_json
from bench import program
from reference.errors import ConfigError

_NOT_SHOWN = ("contender", "bytes_of_x")


def tables(content: dict[str, Any]) -> str:
    """One table per group, the fastest median first."""
    groups = defaultdict(list)
    for entry in content["benchmarks"]:
        groups[entry["group"]].append(entry)
    return "\n".join(_table(group, entries) for group, entries in groups.items())


def _table(group: str, entries: list[dict[str, Any]]) -> str:
    entries.sort(key=lambda entry: entry["stats"]["median"])
    figures = list(dict.fromkeys(key for entry in entries for key in entry["extra_info"] if key not in _NOT_SHOWN))
    lines = [["", "median", "fastest", *(printable(key).replace("_", " ") for key in figures)]]
    for entry in entries:
        info, stats = entry["extra_info"], entry["stats"]
        times = [f"{1e6 * stats[key]:,.1f} us" for key in ("median", "min")]
        lines.append([printable(info["contender"]), *times, *(_figure(info.get(key)) for key in figures)])
    return f"**{printable(group)}**\n\n{program.markdown(lines)}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 if the file cannot be read."""
    parser = program.parser("table", __doc__, stores=False)
    parser.add_argument("file", type=Path)
    path = parser.parse_args(arguments).file
    return program.run("table", lambda: print(tables(_read(path)), end=""))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
        if not all({"group", "stats", "extra_info"} <= entry.keys() for entry in content["benchmarks"]):
            raise ValueError("a benchmark without figures")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"file {path}",
            got=f"{type(error).__name__}: {error}",
            allowed="what pytest bench/ --benchmark-json writes",
            remedy="pytest bench/ --benchmark-json=FILE.json",
        ) from None
    return content


if __name__ == "__main__":
    raise SystemExit(main())
