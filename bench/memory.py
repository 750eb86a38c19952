"""Peak memory of this process, or of its GPU as PyTorch or JAX counts it, since a given moment."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference.errors import BackendError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: str, framework: str = "torch") -> bool:
    """Forget the peak so far, such as that of reading a model. False where the system cannot, nor JAX for its GPU; then
    it counts, too.
    """
    if device == "cuda" and framework == "jax":
        return False
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: str, framework: str = "torch") -> int | None:
    """Largest resident memory in bytes (VmHWM, or getrusage), or largest allocation on the GPU; None where JAX's
    allocator for it does not count.
    """
    if device == "cuda" and framework == "jax":
        import jax

        peak = (jax.local_devices(backend=device)[0].memory_stats() or {}).get("peak_bytes_in_use")
        return None if peak is None else int(peak)
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        found = None
    return 1024 * int(found[1] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_in_own_process(module: str, arguments: Sequence[str], side: str) -> dict[str, Any]:
    """What ``python -m module ARGUMENTS --peak-of side`` prints as JSON in its last line. Raises: BackendError."""
    command = [sys.executable, "-m", module, *arguments, "--peak-of", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackendError(
            f"process for the peak memory of {side}",
            got=f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1][-300:]}",
            allowed="exit status 0",
            remedy="run it by hand: python " + " ".join(command[1:]),
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
