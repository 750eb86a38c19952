"""``python -m conformance --backend=NAME [pytest's options]``: the suite, from a checkout or an installed wheel."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from reference.errors import CRMAError, MissingPackageError

PACKAGE = Path(__file__).resolve().parent
USAGE_ERROR = 4  # pytest's own


def main(arguments: list[str]) -> int:
    """Run the suite, or only the files and test ids among ``arguments``; without the suite's own tests (selftest/)."""
    try:
        _check_packages()
    except CRMAError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return USAGE_ERROR
    import pytest

    named = any(argument.partition("::")[0].endswith(".py") and not argument.startswith("-") for argument in arguments)
    tests = [] if named else sorted(str(path) for path in PACKAGE.glob("test_*.py"))
    options = ["-p", "conformance.plugin", "--import-mode=importlib"]
    if not (
        PACKAGE.parent / "pyproject.toml"
    ).exists():  # installed: no configuration, and nothing may be written there
        options += ["-p", "no:cacheprovider", "--strict-markers"]
    return int(pytest.main([*options, *tests, *arguments]))


def _check_packages() -> None:
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            "conformance suite",
            got=f"no package named {missing[0]}",
            allowed="an installation with the extra 'test'",
            remedy="pip install 'crma[test]'",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
