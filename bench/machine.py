"""What a measurement was taken on: processor or GPU, threads, versions. No host names, no paths."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from pathlib import Path
from typing import Any

from reference.errors import DeviceUnavailableError

GPU_COMMAND = "pytest bench/ --bench-device=cuda --benchmark-json=FILE.json"


def processor() -> str:
    """The model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def require_device(name: str, command: str = GPU_COMMAND) -> str:
    """``name`` ("cpu", "cuda", or "auto" for a GPU where there is one) as a device that is in this machine.

    Raises: DeviceUnavailableError, which names ``command``, the one to run where there is a GPU. Clause: ERR-3.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailableError(
            "device",
            got=f"no CUDA device (torch {torch.__version__})",
            allowed="a machine with an NVIDIA GPU and a CUDA build of torch",
            remedy=f"there, run {command}",
        )
    return name


def machine_kind(device: str) -> dict[str, Any]:
    """What two timings must have in common to be compared: device, processor, and on the CPU the number of threads."""
    import torch

    kind: dict[str, Any] = {"device": device, "processor": processor()}
    return kind | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {"threads": torch.get_num_threads()})


def versions() -> dict[str, str]:
    """Of Python and torch, and of Triton where it is installed."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    triton = importlib.util.find_spec("triton")
    return found if triton is None else found | {"triton": importlib.metadata.version("triton")}


def slug(kind: dict[str, Any]) -> str:
    """A machine kind as part of a file name: ``amd-epyc-cpu-1-thread``."""
    threads = [f"{kind['threads']} thread"] if "threads" in kind else []
    words = " ".join([str(kind.get("gpu", kind["processor"])), str(kind["device"]), *threads])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
