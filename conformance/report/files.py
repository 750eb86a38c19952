"""The files of a report: checked before a run, written after it. Clauses: CONF-4, ERR-2."""

import json
import math
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backends.atomic import atomic_write
from reference.errors import ConfigError, CRMAError, MissingPackageError


def check_report_paths(paths: Iterable[str]) -> None:
    """Refuse what could not be written after the run. Raises: ConfigError, MissingPackageError."""
    for path in paths:
        target = Path(path)
        if target.suffix not in (".html", ".json"):
            raise _wrong_path(repr(path), "a name that ends in .html or .json", "say report.html or report.json")
        if target.is_dir():
            raise _wrong_path(f"{path}, which is a folder", "a file", "name a file in it")
        if not target.absolute().parent.is_dir():
            raise _wrong_path(f"{path}, in a folder that does not exist", "a folder that exists", "create it first")
        if not os.access(target.absolute().parent, os.W_OK):
            raise _wrong_path(f"{path}, in a folder that cannot be written to", "one that can", "name another folder")
        missing = [name for name in ("jinja2", "matplotlib") if target.suffix == ".html" and find_spec(name) is None]
        if missing:
            raise MissingPackageError(
                "--conformance-report",
                got=f"{path} without the package {missing[0]}",
                allowed="an installation with the extra 'test', or a report in JSON",
                remedy="pip install 'crma[test]', or name a file that ends in .json",
            )


def write_reports(paths: Iterable[str], summary: dict[str, Any]) -> list[str]:
    """Each file at once or not at all. Raises: CRMAError for one that cannot be written."""
    written = []
    for path in dict.fromkeys(paths):
        if path.endswith(".json"):
            text = json.dumps(plain(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        else:
            from conformance.report.page import report_html  # the only part that needs jinja2 and matplotlib

            text = report_html(summary)
        try:
            atomic_write(Path(path), text.encode("utf-8", "backslashreplace"))
        except CRMAError:
            raise
        except OSError as error:
            raise _wrong_path(
                f"{path} ({error.strerror})", "a file that can be written", "run again, elsewhere"
            ) from error
        written.append(path)
    return written


def plain(value: Any) -> Any:
    """With strings in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _wrong_path(got: str, allowed: str, remedy: str) -> ConfigError:
    return ConfigError("--conformance-report", got=got, allowed=allowed, remedy=remedy)
