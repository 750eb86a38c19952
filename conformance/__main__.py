"""``python -m conformance --backend=NAME [pytest's options]``: the suite, from a checkout or an installed wheel."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from conformance.guard import run_to_the_end

PACKAGE = Path(__file__).resolve().parent
USAGE_ERROR = 4  # pytest's own
REMEDY = "Try: `crma conformance`, or `python -P -m conformance`, which look there last"
#: options with which a run is of one process: of their own number of processes, or of a look at single tests
ONE_PROCESS = {
    *("-n", "--numprocesses", "-x", "--exitfirst", "--maxfail", "-s", "--capture", "--pdb", "--trace", "--co"),
    *("--collect-only", "--conformance-report", "-k", "--clause", "--junitxml"),
}
_EXPRESSIONS = ("-k", "-m", "--deselect")  # what follows these is no path


def main(arguments: list[str]) -> int:
    """Run the suite, or only the files and test ids among ``arguments``; without the suite's own tests (selftest/).

    A file of the suite may be given by its name alone, as a gap and a report give it.
    """
    if sys.flags.safe_path:  # python -P: a port of the current folder is found, after everything that is installed
        sys.path += [str(PACKAGE.parent), os.getcwd()]
    try:
        from conformance.installation import one_installation
        from reference.errors import CRMAError
    except Exception as error:  # of somebody else's module, whatever it does
        here = [name for name in ("reference", "backends", "spec") if list(Path.cwd().glob(f"{name}*"))]
        found = f"{', '.join(here)} in {Path.cwd()}" if here else type(error).__name__
        print(f"ERROR: package of this project: got {found} ({error}); allowed: its own. {REMEDY}", file=sys.stderr)
        return USAGE_ERROR
    try:
        _check_packages()
        one_installation()
    except CRMAError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return USAGE_ERROR
    import pytest

    before = ["", *arguments]
    paths = {a for b, a in zip(before, arguments, strict=False) if b not in _EXPRESSIONS and _is_path(a)}
    arguments = [_found(argument) if argument in paths else argument for argument in arguments]
    tests = [] if paths else sorted(str(path) for path in PACKAGE.glob("test_*.py"))
    options = ["-p", "conformance.plugin", "--import-mode=importlib"]
    if not (
        PACKAGE.parent / "pyproject.toml"
    ).exists():  # installed: no configuration, and nothing may be written there
        options += ["-p", "no:cacheprovider", "--strict-markers"]
    return int(pytest.main([*options, *_processes(arguments), *tests, *arguments]))


def _processes(arguments: list[str]) -> list[str]:
    """Several processes, unless something else is asked for; tests that share compiled programs stay together.

    One on a GPU: each would take memory of its own there.
    """
    options = {a.partition("=")[0] if a.startswith("--") else a[:2] for a in arguments if a.startswith("-")}
    asked = bool(options & ONE_PROCESS) or any(argument.endswith("no:xdist") for argument in arguments)
    on_gpu = any(kind in argument for argument in arguments for kind in ("-cuda", "-triton", "-pallas"))
    count = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if asked or on_gpu or count < 2 or find_spec("xdist") is None:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ["-n", str(count), "--dist", "loadgroup", "--max-worker-restart", "0"]


def _is_path(argument: str) -> bool:
    return argument.partition("::")[0].endswith(".py") and not argument.startswith("-")


def _found(argument: str) -> str:
    """The file where it lies; that of the suite, where the current folder has none of this name."""
    file, separator, test = argument.partition("::")
    known = not Path(file).exists() and (PACKAGE / file).is_file()
    return f"{PACKAGE / file if known else file}{separator}{test}"


def _check_packages() -> None:
    from reference.errors import MissingPackageError

    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            "conformance suite",
            got=f"no package named {missing[0]}",
            allowed="an installation with the extra 'test'",
            remedy="pip install 'crma[test]'",
        )


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: main(sys.argv[1:])))
