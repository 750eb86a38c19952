"""Which machine this is, what is installed, and of which code the results are."""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.report import Figures, Report
from bench.machine import machine_kind, require_device, versions

COMMAND = "python -m bench.gpu --out FILE.json"
#: whose version may change a result
DECIDE = ("torch", "triton", "numpy", "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "transformers", "peft")
_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("reference", "backends", "conformance", "bench")
#: what sections use, if it is there
_OPTIONAL = ("hyper_connections", "mhc", "ot", "liger_kernel", "pydantic", "gguf", "platformdirs", "pytest", "xdist")


def machine(report: Report) -> None:
    """The identity of the results, the GPU's sizes, and which packages are there."""
    with report.part("identity") as figures:
        require_device(report.device, COMMAND)
        figures |= {"machine": machine_kind(report.device), "versions": versions(*DECIDE), "code": code_digest()}
    with report.part("sizes") as figures:
        figures |= _gpu() if report.device == "cuda" else {}
        figures |= {"cores": os.cpu_count(), "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    with report.part("packages") as figures:
        figures |= {name: find_spec(name) is not None for name in _OPTIONAL}


def _gpu() -> Figures:
    import torch

    found = torch.cuda.get_device_properties(0)
    names = ("multi_processor_count", "L2_cache_size", "total_memory", "shared_memory_per_block_optin")
    free, _ = torch.cuda.mem_get_info()
    return {
        "capability": [found.major, found.minor],
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
        "free_bytes": free,
        **{name: getattr(found, name, None) for name in names},
    }


def code_digest() -> str:
    """SHA-256, shortened, of this project's modules: their names and contents, tests of each folder left out."""
    digest = hashlib.sha256()
    for package in _CODE:
        for file in sorted((_ROOT / package).rglob("*.py")):
            name = file.relative_to(_ROOT)
            if "tests" not in name.parts:
                digest.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
