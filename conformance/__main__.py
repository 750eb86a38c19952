"""``python -m conformance --backend=NAME [pytest's options]``: the suite, from a checkout or an installed wheel."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from conformance.guard import run_to_the_end

PACKAGE = Path(__file__).resolve().parent
USAGE_ERROR = 4  # pytest's own
_EXPRESSIONS = ("-k", "-m", "--deselect")  # what follows these is no path


def main(arguments: list[str]) -> int:
    """Run the suite, or only the files and test ids among ``arguments``; without the suite's own tests (selftest/).

    A file of the suite may be given by its name alone, as a gap and a report give it.
    """
    from reference.errors import CRMAError

    try:
        _check_packages()
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
    return int(pytest.main([*options, *tests, *arguments]))


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
