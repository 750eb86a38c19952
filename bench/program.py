"""What the programs of bench/ share: the option ``--out``, one message for a mistake, figures as JSON, tables."""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.atomic import atomic_write
from backends.files import printable, read_json
from reference.errors import ConfigError, CRMAError

PEAK_OF = "--peak-of"  # in the command of a process that measures the peak memory of one side alone


def parser(program: str, doc: str | None, *, stores: bool = True) -> argparse.ArgumentParser:
    """A parser with the first line of ``doc`` as its description and, where the program stores figures, ``--out``."""
    made = argparse.ArgumentParser(prog=f"python -m bench.{program}", description=(doc or "").partition("\n")[0])
    if stores:
        made.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures to this JSON file")
    return made


def run(program: str, work: Callable[[], int | None]) -> int:
    """What ``work()`` returns, 0 for None; 2 after one message for a mistake."""
    try:
        return work() or 0
    except CRMAError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"got no package named {error.name}. Try: pip install 'crma[bench]'"
    except OSError as error:
        message = f"{error}. Check --out, its permissions and the free disk space."
    print(f"{program}: {printable(message)}", file=sys.stderr)
    return 2


def measure(
    program: str,
    options: argparse.Namespace,
    work: Callable[[], dict[str, Any]],
    text: Callable[[dict[str, Any]], str] | None = None,
) -> int:
    """Print the figures of ``work()``, as JSON or as ``text`` says them, and store them in ``--out``; 0, or 2.

    A process that was started for a peak (``--peak-of``) prints them on one line, and stores nothing.
    """

    def measured() -> None:
        if getattr(options, "peak_of", None):
            print(json.dumps(work()))
            return
        if options.out:
            check_writable(options.out)
        figures = work()
        if options.out:
            store(options.out, figures)
        print(text(figures) if text else json.dumps(figures, indent=2))

    return run(program, measured)


def check_writable(path: Path) -> None:
    """Raise OSError if no file can be written there: before minutes of work, not after them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


def kept(path: Path, here: Mapping[str, Any], field: str) -> Any:
    """``field`` of a file that a run has stored before; None where there is no file.

    Raises: ConfigError if the file is damaged, or says anything else than ``here`` does: it is another machine's, or of
    other versions.
    """
    if not path.exists():
        return None
    try:
        content = read_json(path)
        there, found = {name: content[name] for name in here}, content[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise other_file(path, f"{type(error).__name__}: {error}") from None
    if there != here:
        differing = [name for name in here if there[name] != here[name]]
        raise other_file(path, ", ".join(f"{name} {there[name]} in place of {here[name]}" for name in differing))
    return found


def other_file(path: Path, got: str) -> ConfigError:
    """The error for a file to which these results cannot be added."""
    allowed = "a file of this program, of this machine and these versions"
    return ConfigError(f"file {path}", got=got, allowed=allowed, remedy="name another --out, or remove the file")


def store(path: Path, figures: Any) -> None:
    """Write figures as JSON, atomically; numbers in a row stay on a line. Raises: DiskSpaceError, OSError."""
    indented = json.dumps(figures, indent=1)  # no string of it holds a line break
    text = re.sub(r"\[\n([-\d.e+,\s]+)\n\s*\]", lambda row: f"[{' '.join(row[1].split())}]", indented)
    atomic_write(path, text.encode() + b"\n")


def read_stored(path: Path, by: str = "bench.collect_runs") -> Any:
    """What a program stored. Raises: ConfigError."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        allowed = f"what {by} writes"
        raise ConfigError(f"file {path}", got=str(error), allowed=allowed, remedy="measure again") from error


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; the first line is its head."""
    head, *body = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])
