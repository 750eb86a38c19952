"""Section after section within a time box, each in a process of its own, stored as it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backends.files import read_json
from bench import program
from bench.gpu.report import FAILED, PASSED, SKIPPED, Figures, without_places
from bench.gpu.sections import FIRST, Section
from reference.errors import BackendError

OUT_OF_TIME = "out of time"
#: seconds without which a section is not begun
LEAST = 5.0


def run_sections(
    out: Path, device: str, minutes: float, again: Sequence[str], sections: Mapping[str, Section]
) -> dict[str, Figures]:
    """Run what has not passed yet, or ``again`` alone; returns all results that are stored then.

    Raises: ConfigError for a file of another machine, of other code, or damaged; BackendError where the first section
    cannot say which machine it is.
    """
    end = time.monotonic() + 60 * minutes
    program.check_writable(out)
    first = run_section(sections[FIRST], device, end)
    identity = _identity(first)
    results = _stored(out, identity, sections)
    wanted = again or [name for name in sections if results.get(name, {}).get("outcome") != PASSED]

    def keep(name: str, result: Figures) -> None:
        results[name] = result
        ordered = {each: results[each] for each in sections if each in results}
        program.store(out, identity | {"sections": ordered})
        print(f"{name}: {result['outcome']}, {result['seconds']:.0f} s{_because(result)}", flush=True)

    keep(FIRST, first)
    for name in wanted:
        if name != FIRST:
            keep(name, run_section(sections[name], device, end))
    return {name: results[name] for name in sections if name in results}


def run_section(section: Section, device: str, end: float) -> Figures:
    """One section in its process, until it ends, has taken its seconds, or ``end`` of the time box comes."""
    left = end - time.monotonic()
    if left < LEAST:
        return {"outcome": SKIPPED, "why": OUT_OF_TIME, "seconds": 0.0, "parts": {}}
    limit = min(left, section.seconds)
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "parts.json", Path(folder) / "log"
        command = [sys.executable, "-m", "bench.gpu.child", device, str(file), section.module, section.function]
        command += section.arguments
        started = time.monotonic()
        with log.open("wb") as output, _process(command, output, device) as process:
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
        seconds = time.monotonic() - started
        parts: dict[str, Figures] = read_json(file) if file.exists() else {}
        last = log.read_text(errors="replace").strip().rpartition("\n")[2][-300:]
    outcome, why = _judged(parts)
    if status is None and limit < section.seconds:
        outcome, why = SKIPPED, OUT_OF_TIME
    elif status is None:
        outcome, why = FAILED, f"not done within its {section.seconds} s"
    elif status != 0:
        outcome, why = FAILED, f"its process ended with {_status(status)}: {without_places(last) or 'no message'}"
    return {"outcome": outcome, "why": why, "seconds": round(seconds, 1), "parts": parts}


@contextmanager
def _process(command: Sequence[str], output: Any, device: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that leads a group of its own; at the end nothing of the group is left."""
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env=_environment(device), start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(device: str) -> dict[str, str]:
    """Frameworks share the GPU, and nothing is fetched; without a GPU the kernels are interpreted."""
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    own["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS is not deterministic
    if device == "cpu":
        own |= {"TRITON_INTERPRET": "1", "CRMA_PALLAS_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def _judged(parts: Mapping[str, Figures]) -> tuple[str, str]:
    """Failed if a part failed, passed if one passed, and why not all did."""
    if not parts:
        return FAILED, "it ended without a result"
    found = [part["outcome"] for part in parts.values()]
    outcome = FAILED if FAILED in found else PASSED if PASSED in found else SKIPPED
    told = FAILED if outcome == FAILED else SKIPPED
    reasons = [f"{name} {told}: {part['why']}" for name, part in parts.items() if part["outcome"] == told]
    return outcome, "; ".join(reasons)


def _status(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"status {status}"
    except ValueError:
        return f"signal {-status}"


def _because(result: Figures) -> str:
    return f" ({result['why']})" if result["why"] else ""


def _identity(first: Figures) -> Figures:
    """What two results in one file must have in common."""
    part = first["parts"].get("identity")
    if part is None or part["outcome"] != PASSED:
        raise BackendError(
            f"section {FIRST}",
            got=first["why"],
            allowed="a machine with an NVIDIA GPU and a CUDA build of torch",
            remedy="there, run the same command; here, --device cpu runs a small form of every section",
        )
    identity: Figures = part["figures"]
    return identity


def _stored(out: Path, identity: Figures, sections: Mapping[str, Section]) -> dict[str, Figures]:
    """The results of an existing file. Raises: ConfigError."""
    found = program.kept(out, identity, "sections")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(_is_result(name, result) for name, result in found.items()):
        raise program.other_file(out, "sections in a form that no run writes")
    return {name: result for name, result in found.items() if name in sections}


def _is_result(name: Any, result: Any) -> bool:
    kinds: dict[str, type | tuple[type, ...]] = {"outcome": str, "why": str, "seconds": (int, float), "parts": dict}
    if not isinstance(result, dict) or not all(isinstance(result.get(key), kind) for key, kind in kinds.items()):
        return False
    return result["outcome"] in (PASSED, FAILED, SKIPPED)


def table(results: Mapping[str, Figures]) -> str:
    """What passed, failed, was skipped, and why; then how many of each."""
    lines = [["section", "outcome", "seconds"]]
    lines += [[name, result["outcome"], f"{result['seconds']:.1f}"] for name, result in results.items()]
    reasons = ["why", *(result["why"] for result in results.values())]
    rows = [f"{line}  {why}".rstrip() for line, why in zip(program.aligned(lines).split("\n"), reasons, strict=True)]
    found = [result["outcome"] for result in results.values()]
    counts = ", ".join(f"{found.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, SKIPPED))
    return "\n".join([*rows, counts])
