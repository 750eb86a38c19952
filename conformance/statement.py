"""A statement of conformance: what a run of the suite has shown of a port, as a file that anyone can check again.

``--statement FILE`` writes it; ``python -m conformance.statement FILE [--rerun]`` checks it.

Clause: CONF-9.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import reference
from backends import Backend
from backends.atomic import atomic_write
from backends.files import printable, read_json
from backends.interface import OPTIONAL, x_dtypes
from conformance.agreement import HALF
from conformance.gaps import PACKAGE, Gap
from conformance.profiles import PROFILES, profile_of
from reference.errors import ConfigError, CRMAError

FORMAT = "crma-conformance-statement"
VERSION = 1
OUTCOMES = ("conforms", "conforms but for", "does not conform", "proves nothing")
COUNTED = ("passed", "failed", "skipped", "xfailed", "xpassed", "error")
FIELDS = (
    *("format", "format_version", "spec_version", "outcome", "profile", "backend"),
    *("gaps", "counts", "skipped", "suite", "versions", "command", "date", "sha256"),
)
SELECTING = ("-k", "-m", "--deselect", "--ignore", "--ignore-glob", "--clause", "--quick", "--lf", "--last-failed")


def suite_digest() -> str:
    """SHA-256 of what decides: tests, table of layouts, reference, border around a port, golden vectors; by name."""
    root, digest = PACKAGE.parent, hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".json") and "selftest" not in path.parts]
    shared = [*(root / "reference").glob("*.py"), *(root / "backends").glob("*.py")]  # what stands around a port, too
    files += [path for path in shared if not path.name.startswith("test_")]
    files += [path for path in (root / "spec" / "vectors").iterdir() if path.suffix != ".md"]
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def counts_of(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """Of the tests of this suite alone, whatever else was run beside them."""
    return {kind: len(_of_suite(reporter, kind)) for kind in COUNTED}


def _of_suite(reporter: pytest.TerminalReporter, kind: str) -> list[Any]:
    root = reporter.config.rootpath
    paths = {report: str(report.nodeid).partition("::")[0] for report in reporter.stats.get(kind, ())}
    return [report for report, path in paths.items() if (root / path).resolve().is_relative_to(PACKAGE)]


def is_whole(config: pytest.Config, collected: list[str], counts: dict[str, int]) -> bool:
    """Whether every test function of the suite was collected, each of its tests has run, and that in the full profile.

    ``collected``: the ids before any was left out, whether by an option, by a plug-in, or since the run was stopped.
    """
    from hypothesis import settings

    full = profile_of(config) == "full" and settings.get_current_profile_name() == PROFILES["full"]
    return full and len(collected) == sum(counts.values()) and _by_function(collected) == size_of_suite()


@cache
def size_of_suite() -> Counter[str]:
    """How many tests each function of the suite is, ``test_FILE.py::test_NAME``, for one port.

    Counted by a process that no option, configuration or plug-in of the run reaches.
    """
    files = sorted(str(path) for path in PACKAGE.glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--noconftest", "-c", os.devnull]
    command += ["-p", "conformance.plugin", "-p", "no:cacheprovider", "--import-mode=importlib", *files]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path]),
    }
    done = subprocess.run(command, env=environment, cwd=PACKAGE, capture_output=True, text=True, check=False)
    return _by_function(line for line in done.stdout.splitlines() if "::" in line)


def _by_function(ids: Iterable[str]) -> Counter[str]:
    return Counter(test.partition("[")[0].rpartition("/")[2] for test in ids)  # a port's name may hold a path


def skips_of(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """Reason -> how many tests of the suite were skipped for it."""
    reasons = [str(report.longrepr[2]).removeprefix("Skipped: ") for report in _of_suite(reporter, "skipped")]
    return dict(sorted(Counter(reasons).items()))


def statement_of(
    config: pytest.Config,
    backend: Backend,
    gaps: list[Gap],
    counts: dict[str, int],
    skipped: dict[str, int],
    status: int,
    *,
    whole: bool,
) -> dict[str, Any]:
    """The content of the file; ``whole`` as :func:`is_whole` says. Clause: CONF-9."""
    shown = counts["passed"] > 0 and status == 0
    outcome = OUTCOMES[1 if gaps else 0] if whole and shown else OUTCOMES[2 if status == 1 else 3]
    content: dict[str, Any] = {
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
        "skipped": skipped,
        "suite": suite_digest(),
        "versions": {"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in ("numpy", "hypothesis", "pytest")},
        "command": ["python", "-m", "conformance", *config.invocation_params.args],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if outcome in OUTCOMES[:2] and _contradiction(content):
        content["outcome"] = OUTCOMES[3]  # what the check of the file would refuse is not written
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
    try:
        return _checked(path, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise _wrong(
            path, f"a field of another type ({type(error).__name__}: {error})", "a file as it was written"
        ) from error


def make_way(path: str) -> None:
    """Remove an earlier statement, so that none of another run is there if this one dies.

    Raises: ConfigError for a file that is none.
    """
    if not os.path.lexists(path):
        return
    try:
        is_one = read_json(Path(path))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise ConfigError(
            f"--statement {path}", got="a file that is no statement", allowed="a new file", remedy="choose another name"
        )
    Path(path).unlink()


def _checked(path: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or sorted(content) != sorted(FIELDS) or content["format"] != FORMAT:
        raise _wrong(path, "other fields", f"{', '.join(FIELDS)} of format {FORMAT!r}")
    if content["format_version"] != VERSION:
        raise _wrong(path, f"format_version {content['format_version']!r}", str(VERSION))
    if content["sha256"] != _own_digest({key: value for key, value in content.items() if key != "sha256"}):
        raise _wrong(path, "another sha256 than that of its content", "a file as it was written")
    if content["suite"] != suite_digest() or content["spec_version"] != reference.SPEC_VERSION:
        raise _wrong(path, f"suite {content['suite'][:12]}", f"{suite_digest()[:12]}, the suite that is installed here")
    if content["outcome"] not in OUTCOMES:
        raise _wrong(path, f"outcome {content['outcome']!r}", ", ".join(OUTCOMES))
    if content["outcome"] in OUTCOMES[:2] and (wrong := _contradiction(content)):
        raise _wrong(path, f"{content['outcome']!r} with {wrong}", "an outcome that the rest bears out")
    return dict(content)


def _contradiction(content: dict[str, Any]) -> str:
    """What does not fit to a statement that a port conforms; empty if nothing does."""
    counts, gaps, backend = content["counts"], content["gaps"], content["backend"]
    clean = sorted(counts) == sorted(COUNTED) and all(type(count) is int and count >= 0 for count in counts.values())
    if not clean or counts["failed"] or counts["error"] or counts["xpassed"] or not counts["passed"]:
        return f"counts {counts}"
    if sum(counts.values()) != (total := sum(size_of_suite().values())):
        return f"{sum(counts.values())} tests of {total}"
    if counts["xfailed"] != len(gaps) or bool(gaps) != (content["outcome"] == OUTCOMES[1]):
        return f"{len(gaps)} gaps and {counts['xfailed']} expected failures"
    if unknown := [gap["test"] for gap in gaps if gap["test"].partition("[")[0] not in size_of_suite()]:
        return f"a gap {unknown[0]!r} that is no test of the suite"
    if sum(content["skipped"].values()) != counts["skipped"]:
        return f"{counts['skipped']} skipped tests and reasons for {sum(content['skipped'].values())}"
    may = {f"not offered: {function}" for function in OPTIONAL if function not in backend["optional"]}
    may |= {f"not offered: x in {name} (x_dtypes)" for name in HALF if name not in backend["x_dtypes"]}
    may |= set() if backend["thread_safe"] else {"not offered: calls from several threads (thread_safe)"}
    may |= {f"the name {backend['name']} promises no device"}
    if other := content["skipped"].keys() - may:
        return f"a test that was skipped though it is not of what the port goes without: {sorted(other)[0]}"
    selected = [
        a for a in content["command"][3:] if "::" in a or a.partition("=")[0] in SELECTING or a[:2] in ("-k", "-m")
    ]
    if content["profile"] != "full" or selected:
        return f"profile {content['profile']!r} and {' '.join(selected) or 'no selection'}"
    return ""


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
    same = ("outcome", "counts", "skipped", "gaps", "backend")
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
        print(f"ERROR: {printable(error)}", file=sys.stderr)
        return 4
    backend, counts = content["backend"], content["counts"]
    said = f"{backend['name']}, {backend['version']}: {content['outcome']}, CRMA {content['spec_version']}, {counts}"
    print(printable(said))
    if "--rerun" in arguments and (differs := rerun(content)):
        print(printable(f"run again: {differs}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
