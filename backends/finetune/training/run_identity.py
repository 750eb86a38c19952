"""What a run is known by, and what its folder says of it: protocol, model, versions, machine."""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from backends.finetune.models.fingerprint import model_fingerprint
from backends.finetune.models.marker import is_random
from backends.finetune.protocols.protocol import Protocol
from reference import SPEC_VERSION

WORDS = ("description", "source", "model", "models")  # of a protocol; what the model holds is compared by itself
PACKAGES = {
    "torch": ("crma", "torch", "transformers", "peft", "numpy"),
    "jax": ("crma", "jax", "jaxlib", "optax", "transformers", "numpy"),
}


def identity_of(protocol: Protocol, backend: str, model_path: Path) -> dict[str, Any]:
    """What must not change within a run folder. Seeds and conditions may be added later."""
    content = protocol.model_dump(mode="json", exclude={"seeds", "conditions", "checkpoint_every", *WORDS})
    return {"protocol": content, "backend": backend, "model": model_fingerprint(model_path)}


def run_record(protocol: Protocol, backend: str, model_path: Path, threads: int) -> dict[str, Any]:
    return {
        "kind": "run",
        "protocol": protocol.name,
        "model": model_path.name,
        "random_weights": is_random(model_path),
        "backend": backend,
        "tasks": protocol.tasks,
        "conditions": list(protocol.conditions),
        "seeds": protocol.seeds,
        "versions": versions_of(backend),
        "machine": machine_of(threads),
        "config": protocol.model_dump(mode="json"),
        "displacement_budget": protocol.crma.displacement_budget,
        "data_budget": protocol.crma.data_budget,
    }


def machine_of(threads: int) -> str:
    return f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"


def versions_of(backend: str) -> dict[str, str]:
    """Of the packages that compute, of the specification and, in a checkout, of the code: noted, and never compared
    with those of an earlier start."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES[backend.partition("-")[0]]}
    versions["specification"] = SPEC_VERSION
    root = Path(__file__).parents[3]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        with suppress(OSError, subprocess.SubprocessError):
            versions["commit"] = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    return versions


def digest_of(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """The processor's model in words."""
    with suppress(OSError):
        if model := re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return model[1].strip()
    return platform.processor() or platform.machine()
