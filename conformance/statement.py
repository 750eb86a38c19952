"""A statement of conformance: what a run of the suite has shown of a port, as a file that anyone can check again.

``--statement FILE`` writes it; ``python -m conformance.statement FILE [--rerun]`` checks it.

Clause: CONF-9. Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import reference
from backends import Backend
from backends.atomic import atomic_write
from backends.files import read_json
from backends.interface import OPTIONAL, x_dtypes
from conformance.gaps import PACKAGE, Gap
from conformance.profiles import PROFILES, profile_of
from reference.errors import ConfigError, CRMAError

FORMAT = "crma-conformance-statement"
VERSION = 1
OUTCOMES = ("conforms", "conforms but for", "does not conform", "proves nothing")
COUNTED = ("passed", "failed", "skipped", "xfailed", "xpassed", "error")
FUNCTION = re.compile(r"^def (test_\w+)", re.MULTILINE)
FIELDS = (
    *("format", "format_version", "spec_version", "outcome", "profile", "backend", "gaps", "counts", "suite"),
    *("versions", "command", "date", "sha256"),
)


def suite_digest() -> str:
    """SHA-256 of what decides: the tests, the table of layouts, the reference and the golden vectors, by name."""
    root, digest = PACKAGE.parent, hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".json") and "selftest" not in path.parts]
    files += [path for path in (root / "reference").glob("*.py") if not path.name.startswith("test_")]
    files += [path for path in (root / "spec" / "vectors").iterdir() if path.suffix != ".md"]
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def counts_of(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """Of the tests of this suite alone, whatever else was run beside them."""
    root = reporter.config.rootpath

    def ours(report: Any) -> bool:
        return (root / str(report.nodeid).partition("::")[0]).resolve().is_relative_to(PACKAGE)

    return {kind: sum(map(ours, reporter.stats.get(kind, ()))) for kind in COUNTED}


def is_whole(config: pytest.Config, collected: list[str], counts: dict[str, int]) -> bool:
    """Whether every test function of the suite was collected, each of its tests has run, and that in the full profile.

    ``collected``: the ids before any was left out, whether by an option, by a plug-in, or since the run was stopped.
    """
    from hypothesis import settings

    full = profile_of(config) == "full" and settings.get_current_profile_name() == PROFILES["full"]
    tests = [(Path(file).name, rest.partition("[")[0]) for file, _, rest in (id.partition("::") for id in collected)]
    functions = {
        (path.name, name) for path in PACKAGE.glob("test_*.py") for name in FUNCTION.findall(path.read_text("utf-8"))
    }
    return full and functions <= set(tests) and len(tests) == sum(counts.values())


def statement_of(
    config: pytest.Config, backend: Backend, gaps: list[Gap], counts: dict[str, int], status: int, *, whole: bool
) -> dict[str, Any]:
    """The content of the file; ``whole`` as :func:`is_whole` says. Clause: CONF-9."""
    shown = counts["passed"] > 0 and status == 0
    outcome = OUTCOMES[1 if gaps else 0] if whole and shown else OUTCOMES[2 if status == 1 else 3]
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        "spec_version": reference.SPEC_VERSION,
        "outcome": outcome,
        "profile": profile_of(config),
        "backend": {
            "given": config.getoption("--backend")[0] if config.getoption("--backend") else "reference",
            **{field: str(getattr(backend, field)) for field in ("name", "version", "device", "parameter_dtype")},
            "x_dtypes": list(x_dtypes(backend)),
            "optional": [function for function in OPTIONAL if hasattr(backend, function)],
            "thread_safe": bool(getattr(backend, "thread_safe", True)),
        },
        "gaps": [gap._asdict() for gap in gaps],
        "counts": counts,
        "suite": suite_digest(),
        "versions": {"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in ("numpy", "hypothesis", "pytest")},
        "command": ["python", "-m", "conformance", *config.invocation_params.args],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {**content, "sha256": _own_digest(content)}


def write_statement(path: str, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic_write(Path(path), text.encode())


def check_statement(path: str) -> dict[str, Any]:
    """The content of a statement made by this very suite.

    Raises: ConfigError for a file that is no statement, was changed, contradicts itself or is of another suite.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or sorted(content) != sorted(FIELDS) or content["format"] != FORMAT:
        raise _wrong(path, "other fields", f"{', '.join(FIELDS)} of format {FORMAT!r}")
    if content["format_version"] != VERSION:
        raise _wrong(path, f"format_version {content['format_version']!r}", str(VERSION))
    if content["sha256"] != _own_digest({key: value for key, value in content.items() if key != "sha256"}):
        raise _wrong(path, "another sha256 than that of its content", "a file as it was written")
    if content["suite"] != suite_digest() or content["spec_version"] != reference.SPEC_VERSION:
        raise _wrong(path, f"suite {content['suite'][:12]}", f"{suite_digest()[:12]}, the suite that is installed here")
    counts, outcome = content["counts"], content["outcome"]
    clean = counts["failed"] == counts["error"] == counts["xpassed"] == 0 < counts["passed"]
    fits = clean and content["profile"] == "full" and bool(content["gaps"]) == (outcome == OUTCOMES[1])
    if outcome not in OUTCOMES or (outcome in OUTCOMES[:2] and not fits):
        raise _wrong(path, f"{outcome!r} with {counts}, {len(content['gaps'])} gaps", "an outcome that the counts bear")
    return dict(content)


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _wrong(path: str, got: str, allowed: str) -> ConfigError:
    return ConfigError(f"statement {path}", got=got, allowed=allowed, remedy="write it anew: python -m conformance ...")


def rerun(content: dict[str, Any]) -> str:
    """What differs when the run is made again here; empty if nothing does."""
    with tempfile.TemporaryDirectory(prefix="crma-statement-") as folder:
        again, gaps = Path(folder) / "statement.json", Path(folder) / "gaps.toml"
        gaps.write_text(
            "".join(
                "[[gap]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in gap.items())
                for gap in content["gaps"]
            ),
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "conformance", "-q", "--profile", content["profile"], f"--statement={again}"]
        command += [f"--backend={content['backend']['given']}", *([f"--gaps={gaps}"] if content["gaps"] else [])]
        subprocess.run(command, check=False)
        found = check_statement(str(again)) if again.exists() else {}
    same = ("outcome", "counts", "gaps", "backend")
    return ", ".join(f"{key} {content[key]} became {found.get(key)}" for key in same if found.get(key) != content[key])


def main(arguments: list[str]) -> int:
    """Check a file; with ``--rerun`` run the suite again and compare. Status 0, 1 for another result, 4 for misuse."""
    paths = [argument for argument in arguments if argument != "--rerun"]
    try:
        if len(paths) != 1:
            raise ConfigError(
                "arguments", got=" ".join(arguments), allowed="FILE [--rerun]", remedy="name one statement"
            )
        content = check_statement(paths[0])
    except (CRMAError, OSError, ValueError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 4
    backend, counts = content["backend"], content["counts"]
    print(f"{backend['name']}, {backend['version']}: {content['outcome']}, CRMA {content['spec_version']}, {counts}")
    if "--rerun" in arguments and (differs := rerun(content)):
        print(f"run again: {differs}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
