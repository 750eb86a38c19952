"""``crma finetune`` and ``crma report``: from options to a run folder with results, pictures and a page."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

from backends import load_backend
from backends.files import sha256_of
from backends.finetune.cli.terminal import Terminal
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.engine import EngineFactory
from backends.finetune.engines.world import World
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.fingerprint import model_fingerprint
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.marker import is_random, random_size
from backends.finetune.models.random_weights import random_model_folder
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol, load_protocol
from backends.finetune.protocols.supported import check_supported
from backends.finetune.report.page import summary_table, write_report
from backends.finetune.report.summary import orders_table
from backends.finetune.runs.links import refuse_links
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.named import named_task
from backends.finetune.tasks.task import Task, check_task_names, check_tasks, fingerprint, parse_task_options
from backends.finetune.tasks.texts import count_texts, encode_tasks, said_of
from backends.finetune.training.branch import EVALUATION_COST
from backends.finetune.training.progress import Progress
from backends.finetune.training.session import run_session
from backends.finetune.training.tensorboard import NO_LOG, TensorBoardLog
from backends.finetune.training.threads import set_up_framework
from reference import SPEC_VERSION
from reference.errors import ProtocolError

WORDS = ("description", "source", "model", "models")  # of a protocol; what the model holds is compared by itself
PACKAGES = {
    "torch": ("crma", "torch", "transformers", "peft", "numpy"),
    "jax": ("crma", "jax", "jaxlib", "optax", "transformers", "numpy"),
}


def finetune(options: argparse.Namespace) -> None:
    """Run a protocol into a run folder, and report. Raises: the errors of everything it calls."""
    own_tasks = parse_task_options(options.task or [])
    protocol = load_protocol(
        options.protocol,
        options.settings,
        model=options.model,
        seeds=options.seeds,
        conditions=options.conditions,
        tasks=[task.name for task in own_tasks] or None,
    )
    check_task_names(protocol.tasks)
    if own_tasks and protocol.canaries:
        raise ProtocolError(
            "canaries",
            got=f"{protocol.canaries} with --task",
            allowed="0 for tasks of your own, which have none",
            remedy="add --set canaries=0",
        )
    _check(options, protocol, options.random_weights)
    out = options.out or Path("runs") / protocol.name
    refuse_links(out)
    threads = set_up_framework(options.backend, options.threads)
    load_backend(options.backend)  # a missing device is one clear error, before anything is loaded
    make_engine, world = engine_factory(options.backend, options.mesh, shard=options.shard)
    with world.joined():
        _in_every_order(options, protocol, out, own_tasks, threads, make_engine, world)


def _check(options: argparse.Namespace, protocol: Protocol, random_weights: str | None) -> None:
    conditions = map(parse_condition, protocol.conditions)
    check_supported(protocol, conditions, options.backend, shard=options.shard, random_weights=random_weights)


def _in_every_order(
    options: argparse.Namespace,
    protocol: Protocol,
    out: Path,
    own_tasks: Sequence[Task],
    threads: int,
    make_engine: EngineFactory,
    world: World,
) -> None:
    if options.random_weights is not None:
        model_path = random_model_folder(protocol.model, size=options.random_weights).resolve()
    else:
        model_path = resolve_model(protocol.model).resolve()
        _check(options, protocol, random_size(model_path))
    check_fits(model_path, protocol)
    names = [] if own_tasks else protocol.tasks
    tasks = {seed: own_tasks or [named_task(protocol, name, seed) for name in names] for seed in protocol.seeds}
    console = Terminal(quiet=world.rank > 0)
    _check_texts(
        protocol, {"": own_tasks} if own_tasks else {f"seed {s}: ": of for s, of in tasks.items()}, model_path, console
    )
    run = _Run(protocol, options.backend, model_path, threads, make_engine, world, options.tensorboard)
    if protocol.orderings == "given":
        run.into(out, tasks)
        return
    folders = []
    for order in permutations(range(len(protocol.tasks))):
        folders.append(out / ("order-" + "-".join(str(index + 1) for index in order)))
        run.into(folders[-1], {seed: [of_seed[index] for index in order] for seed, of_seed in tasks.items()})
    console.print(orders_table([read_results(folder) for folder in folders], console.width))


def _check_texts(protocol: Protocol, tasks: Mapping[str, Sequence[Task]], model_path: Path, console: Terminal) -> None:
    """Look at every text before anything is trained, and say what max_tokens cuts. Raises: TaskDataError."""
    encoder = Encoder(load_tokenizer(model_path), protocol)
    for prefix, of_seed in tasks.items():
        check_tasks(of_seed)
        counts = zip(of_seed, map(count_texts, encode_tasks(of_seed, encoder)), strict=True)
        if said := said_of({task.name: count for task, count in counts}):
            console.print(prefix + said, soft_wrap=True, markup=False, highlight=False)


class _Run:
    """One command; ``into`` runs it into a folder, for one order of the tasks."""

    def __init__(
        self,
        protocol: Protocol,
        backend: str,
        model_path: Path,
        threads: int,
        make_engine: EngineFactory,
        world: World,
        tensorboard: bool,
    ) -> None:
        self.protocol, self.backend, self.model_path, self.threads = protocol, backend, model_path, threads
        self.make_engine, self.world, self.tensorboard = make_engine, world, tensorboard

    def into(self, path: Path, tasks: Mapping[int, Sequence[Task]]) -> None:
        """Run, or go on, and report. Of several processes the first one writes and speaks."""
        is_first = self.world.rank == 0
        console = Terminal(quiet=not is_first)
        names = [task.name for task in next(iter(tasks.values()))]
        protocol = self.protocol.model_copy(update={"tasks": names})
        folder = RunFolder(path)
        identity = _identity(protocol, self.backend, self.model_path)
        prints = {f"tasks-{seed}.json": {task.name: fingerprint(task) for task in of} for seed, of in tasks.items()}
        record = _run_record(protocol, self.backend, self.model_path, self.threads)
        self.world.agree(
            {
                "protocol": _digest({**record["config"], **dict.fromkeys(WORDS)}),
                "model": _digest(identity["model"]),
                "data": _digest(prints),
                "versions": _digest(record["versions"]),
            }
        )
        with folder.locked() if is_first else nullcontext():
            if is_first:
                for name, content in {"run.json": identity, **prints}.items():
                    folder.claim(name, content)
                files = {name: sha256_of(folder.path / name) for name in ("run.json", *prints)}
                if folder.results.exists():
                    folder.check_files(read_results(folder.path))
                append_record(folder.results, record | {"files": files})
            self.world.barrier()
            weights = [_cost(protocol, name) for _ in protocol.seeds for name in protocol.conditions]
            log = TensorBoardLog(folder.path / "tensorboard") if self.tensorboard and is_first else NO_LOG
            with closing(log), Progress(console, branches=len(weights), weights=weights) as progress:
                run_session(protocol, tasks, self.model_path, self.make_engine, folder, progress, log)
            if is_first:
                show_report(folder.path, console)


def _cost(protocol: Protocol, name: str) -> float:
    """Of a token in a condition, beside the others."""
    condition = parse_condition(name)
    work = condition.method.work(condition.settings(protocol), protocol.batch_size, EVALUATION_COST)
    return work * (1.6 if condition.trains == "full" else 1.0)  # the last measured on a CPU


def show_report(folder: Path, console: Terminal) -> None:
    """Print the table of a run folder, and write its pictures and HTML page."""
    written = write_report(folder)  # which also checks the folder's files
    results = read_results(folder)
    console.print(summary_table(results, console.width))
    console.print(f"report: {written[-1]}", soft_wrap=True, markup=False, highlight=False)


def _identity(protocol: Protocol, backend: str, model_path: Path) -> dict[str, Any]:
    """What must not change within a run folder. Seeds and conditions may be added later."""
    content = protocol.model_dump(
        mode="json", exclude={"seeds", "conditions", "description", "source", "model", "models", "checkpoint_every"}
    )
    return {"protocol": content, "backend": backend, "model": model_fingerprint(model_path)}


def _run_record(protocol: Protocol, backend: str, model_path: Path, threads: int) -> dict[str, Any]:
    return {
        "kind": "run",
        "protocol": protocol.name,
        "model": model_path.name,
        "random_weights": is_random(model_path),
        "backend": backend,
        "tasks": protocol.tasks,
        "conditions": list(protocol.conditions),
        "seeds": protocol.seeds,
        "versions": _versions(backend),
        "machine": f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}",
        "config": protocol.model_dump(mode="json"),
        "displacement_budget": protocol.crma.displacement_budget,
    }


def _versions(backend: str) -> dict[str, str]:
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


def _digest(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """The processor's model in words."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
