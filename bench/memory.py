"""Peak memory of this process, or of its GPU, since a given moment. Source: ours."""

from __future__ import annotations

import re
import resource
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: str) -> bool:
    """Forget the peak so far, such as that of reading a model. False where the system cannot; then it counts, too."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: str) -> int:
    """Largest resident memory in bytes (VmHWM, or getrusage), or largest allocation on the GPU."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        found = None
    return 1024 * int(found[1] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
