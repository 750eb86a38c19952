"""``crma finetune`` and ``crma report``: from options to a run folder with results, pictures and a page."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from rich.console import Console

from backends import load_backend
from backends.finetune.base_model import resolve_model
from backends.finetune.domains import load_domain
from backends.finetune.engine import engine_factory
from backends.finetune.progress import Progress
from backends.finetune.protocol import Protocol, load_protocol
from backends.finetune.report import summary_table, write_report
from backends.finetune.results import append_record, read_results
from backends.finetune.run_folder import RunFolder
from backends.finetune.session import run_session
from backends.finetune.tasks import Task, check_task_names, fingerprint, parse_task_option
from backends.finetune.threads import set_up_framework

PACKAGES = {
    "torch": ("crma", "torch", "transformers", "peft", "numpy"),
    "jax": ("crma", "jax", "jaxlib", "optax", "transformers", "numpy"),
}


def finetune(options: argparse.Namespace) -> None:
    """Run a protocol into a run folder, and report. Raises: the errors of everything it calls."""
    console = Console()
    own_tasks = [parse_task_option(option) for option in options.task or []]
    protocol = load_protocol(
        options.protocol,
        model=options.model,
        seeds=options.seeds,
        conditions=options.conditions,
        tasks=[task.name for task in own_tasks] or None,
    )
    check_task_names(protocol.tasks)
    threads = set_up_framework(options.backend, options.threads)
    load_backend(options.backend)  # a missing device is one clear error, before anything is loaded
    make_engine = engine_factory(options.backend, options.mesh)
    model_path = resolve_model(protocol.model).resolve()
    tasks = {seed: own_tasks or _domain_tasks(protocol, seed) for seed in protocol.seeds}

    folder = RunFolder(options.out or Path("runs") / protocol.name)
    with folder.locked():
        folder.claim("run.json", _identity(protocol, options.backend, model_path))
        for seed, of_seed in tasks.items():
            folder.claim(f"tasks-{seed}.json", {task.name: fingerprint(task) for task in of_seed})
        append_record(folder.results, _run_record(protocol, options.backend, model_path, threads))
        with Progress(console, branches=len(protocol.seeds) * len(protocol.conditions)) as progress:
            run_session(protocol, tasks, model_path, make_engine, folder, progress)
        show_report(folder.path, console)


def show_report(folder: Path, console: Console) -> None:
    """Print the table of a run folder, and write its pictures and HTML page."""
    results = read_results(folder)
    written = write_report(folder)
    console.print(summary_table(results))
    console.print(f"report: {written[-1]}", soft_wrap=True, markup=False, highlight=False)


def _domain_tasks(protocol: Protocol, seed: int) -> list[Task]:
    return [load_domain(name, train=protocol.train, holdout=protocol.holdout, seed=seed) for name in protocol.tasks]


def _identity(protocol: Protocol, backend: str, model_path: Path) -> dict[str, Any]:
    """What must not change within a run folder. Seeds and conditions may be added later."""
    content = protocol.model_dump(
        mode="json", exclude={"seeds", "conditions", "description", "model", "checkpoint_every"}
    )
    return {"protocol": content, "backend": backend, "model": _fingerprint(model_path)}


def _fingerprint(model_path: Path) -> str:
    """SHA-256 of the configuration and of the size, beginning and end of each file of weights."""
    digest = hashlib.sha256((model_path / "config.json").read_bytes())
    for file in sorted(model_path.glob("*.safetensors")):
        with file.open("rb") as weights:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(2**20))
            weights.seek(max(0, size - 2**20))
            digest.update(weights.read())
    return digest.hexdigest()


def _run_record(protocol: Protocol, backend: str, model_path: Path, threads: int) -> dict[str, Any]:
    return {
        "kind": "run",
        "protocol": protocol.name,
        "model": model_path.name,
        "backend": backend,
        "tasks": protocol.tasks,
        "conditions": list(protocol.conditions),
        "seeds": protocol.seeds,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES[backend.partition("-")[0]]},
        "machine": f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}",
        "config": protocol.model_dump(mode="json"),
        "displacement_budget": protocol.crma.displacement_budget,
    }


def _processor() -> str:
    """The processor's model in words."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
