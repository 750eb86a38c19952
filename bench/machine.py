"""What a measurement was taken on: processor or GPU, threads, versions. No host names, no paths."""

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from reference.errors import DeviceUnavailableError

GPU_COMMAND = "pytest bench/ --bench-device=cuda --benchmark-json=FILE.json"


def processor() -> str:
    """The model name of the processor."""
    with suppress(OSError):
        if model := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1].strip()
    return platform.processor() or platform.machine()


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


def machine_kind(device: str, framework: str = "torch", threads: int | None = None) -> dict[str, Any]:
    """What two timings must have in common to be compared: device, processor, and on the CPU the number of threads,
    which is PyTorch's where none is given.
    """
    kind: dict[str, Any] = {"device": device, "processor": processor()}
    if device == "cuda" and framework == "jax":
        import jax

        return kind | {"gpu": jax.local_devices(backend=device)[0].device_kind}
    import torch

    if device == "cuda":
        return kind | {"gpu": torch.cuda.get_device_name()}
    return kind | {"threads": threads or torch.get_num_threads()}


def versions(*packages: str) -> dict[str, str]:
    """Of Python, torch and Triton, or of other ``packages``, as far as they are installed. Imports none of them."""
    found = {"python": platform.python_version()}
    for name in packages or ("torch", "triton"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def load() -> str:
    """How busy the machine is with other work, in words."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def slug(kind: dict[str, Any]) -> str:
    """A machine kind as part of a file name: ``amd-epyc-cpu-1-thread``."""
    threads = [f"{kind['threads']} thread"] if "threads" in kind else []
    words = " ".join([str(kind.get("gpu", kind["processor"])), str(kind["device"]), *threads])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
