"""Everything that only a GPU can show, in sections within a time box, each stored as it ends.

    python -m bench.gpu --out FILE.json                                   # on a rented machine, nine minutes at most
    python -m bench.gpu --out FILE.json --sections launches model-1.1b    # these again, whatever they were
    python -m bench.gpu --out FILE.json --device cpu                      # a small form of each, in interpreters

Each section runs in a process of its own, so that a crash, memory that does not suffice or a hang costs that section
alone. The same command goes on where the last one ended: what passed is not run again. It ends with a table of what
passed, failed and was skipped, and why, and with 0 if nothing failed, 1 if something did, 2 for a mistake.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from bench import program
from bench.gpu.driver import run_sections, table
from bench.gpu.report import FAILED
from bench.gpu.sections import FIRST, SECTIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return program.run("gpu", lambda: _measure(options))
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(options: argparse.Namespace) -> int:
    results = run_sections(options.out, options.device, options.minutes, options.sections, SECTIONS)
    print(table(results))
    return int(any(result["outcome"] == FAILED for result in results.values()))


def _end(signum: int, frame: Any) -> None:
    """As by Ctrl-C: the section's process ends with this one."""
    raise KeyboardInterrupt


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise ValueError
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("gpu", __doc__)
    parser.epilog = "Sections, in their order: " + ", ".join(SECTIONS)
    parser.set_defaults(out=None)
    for action in parser._actions:
        action.required = action.required or action.dest == "out"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small form of every section")
    parser.add_argument("--minutes", type=_minutes, default=9.0, help="of the time box (default: %(default)s)")
    names = [name for name in SECTIONS if name != FIRST]
    parser.add_argument(
        "--sections", nargs="+", default=(), choices=names, metavar="NAME", help="run these alone, again"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
