"""Fine-tuning through a sequence of tasks, from a protocol's name to a run folder with results, pictures and a page."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

from backends import load_backend
from backends.files import sha256_of
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.engine import EngineFactory
from backends.finetune.engines.world import World
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.marker import random_size
from backends.finetune.models.random_weights import Size, random_model_folder
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol, load_protocol
from backends.finetune.protocols.supported import check_supported, idle_settings
from backends.finetune.report.page import write_report
from backends.finetune.report.summary import orders_table, summary_table
from backends.finetune.report.terminal import Terminal
from backends.finetune.runs.links import refuse_links
from backends.finetune.runs.results import RunResults, append_record, read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.named import drawn_order, named_task
from backends.finetune.tasks.task import Task, check_task_names, check_tasks, fingerprint, with_decision
from backends.finetune.tasks.texts import count_texts, encode_tasks, said_of
from backends.finetune.training.branch import EVALUATION_COST
from backends.finetune.training.precision import on_this_processor
from backends.finetune.training.progress import Progress
from backends.finetune.training.run_identity import WORDS, digest_of, identity_of, run_record
from backends.finetune.training.session import run_session
from backends.finetune.training.tensorboard import NO_LOG, TensorBoardLog
from backends.finetune.training.threads import set_up_framework
from reference.errors import ProtocolError


def finetune(
    protocol: str,
    tasks: Sequence[Task] = (),
    model: str | Path | None = None,
    out: str | Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    conditions: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    backend: str = "torch-cpu",
    mesh: str | None = None,
    shard: bool = False,
    threads: int | None = None,
    random_weights: Size | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
) -> RunResults:
    """Run a protocol into a run folder and report; an interrupted run goes on in its folder, to the same bits.

    Args:
        protocol: a name (``crma protocols`` lists them) or the path of a .toml file. tasks: in their order, in place of
            the protocol's (:func:`backends.finetune.read_task`).
        model: a local Hugging Face folder, or "smollm2". out: the run folder; "runs/NAME" of the protocol by default.
        seeds, conditions, settings: in place of the protocol's; each of ``settings`` is FIELD=VALUE as in TOML.
        backend: "torch-cpu", "torch-cuda", "jax-cpu" or "jax-cuda". mesh: for JAX, such as "4x2". shard: under
            torchrun, whether the processes share the base model. threads: of the CPU; all by default.
        random_weights: "full" or "reduced", in place of the model's weights: figures then mean nothing.
        tensorboard: whether to write OUT/tensorboard. quiet: whether to print nothing.

    Returns:
        What the folder holds; of a protocol that runs every order of its tasks, the results of the first one.

    Raises: CRMAError, naming what is wrong and what to try. Clauses: CL-5, ERR-1. Source: paper section 6.1.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    loaded = load_protocol(
        protocol,
        settings,
        model=None if model is None else str(model),
        seeds=seeds,
        conditions=conditions,
        tasks=[task.name for task in tasks] or None,
    )
    check_task_names(loaded.tasks)
    if tasks and loaded.canaries:
        raise ProtocolError(
            "canaries",
            got=f"{loaded.canaries} with --task",
            allowed="0 for tasks of your own, which have none",
            remedy="add --set canaries=0",
        )
    _check(loaded, backend, shard, random_weights)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    refuse_links(folder)
    used = set_up_framework(backend, threads)
    load_backend(backend)  # a missing device is one clear error, before anything is loaded
    loaded, said = on_this_processor(loaded, backend, settings)
    make_engine, world = engine_factory(backend, mesh, shard=shard)
    with world.joined():
        idle = (f"{each} does nothing here: no condition reads it." for each in idle_settings(loaded, settings))
        for note in filter(None, (said, *idle)):
            Terminal(quiet=quiet or world.rank > 0).print(note, soft_wrap=True, markup=False, highlight=False)
        if random_weights is not None:
            path = random_model_folder(loaded.model, size=random_weights).resolve()
        else:
            path = resolve_model(loaded.model).resolve()
            _check(loaded, backend, shard, random_size(path))
        check_fits(path, loaded)
        run = _Run(loaded, backend, path, used, make_engine, world, tensorboard, quiet)
        return run.in_every_order(folder, tasks)


def _check(protocol: Protocol, backend: str, shard: bool, random_weights: str | None) -> None:
    conditions = map(protocol.condition, protocol.conditions)
    check_supported(protocol, conditions, backend, shard=shard, random_weights=random_weights)


def _check_texts(protocol: Protocol, tasks: Mapping[str, Sequence[Task]], model_path: Path, console: Terminal) -> None:
    """Look at every text before anything is trained, and say what max_tokens cuts. Raises: TaskDataError."""
    encoder = Encoder(load_tokenizer(model_path), protocol)
    for prefix, of_seed in tasks.items():
        check_tasks(of_seed)
        counts = zip(of_seed, map(count_texts, encode_tasks(of_seed, encoder)), strict=True)
        if said := said_of({task.name: count for task, count in counts}):
            console.print(prefix + said, soft_wrap=True, markup=False, highlight=False)


@dataclass(frozen=True)
class _Run:
    """One protocol on one model; ``into`` runs it into a folder, for one order of the tasks."""

    protocol: Protocol
    backend: str
    model: Path
    threads: int
    make_engine: EngineFactory
    world: World
    tensorboard: bool
    quiet: bool

    def in_every_order(self, out: Path, own_tasks: Sequence[Task]) -> RunResults:
        """In the given order, or in several, each into a folder of its own, and their table. Returns the first's."""
        protocol, names = self.protocol, [] if own_tasks else self.protocol.tasks
        own_tasks = [with_decision(task, protocol.decision) for task in own_tasks]
        tasks = {seed: own_tasks or [named_task(protocol, name, seed) for name in names] for seed in protocol.seeds}
        console = Terminal(quiet=self.quiet or self.world.rank > 0)
        named = {"": own_tasks} if own_tasks else {f"seed {seed}: ": of for seed, of in tasks.items()}
        _check_texts(protocol, named, self.model, console)
        if protocol.orderings == "given":
            self.into(out, tasks)
            return read_results(out)
        folders = []
        if protocol.orderings == "drawn":
            for seed, of_seed in tasks.items():
                folders.append(out / f"seed-{seed}")
                run = replace(self, protocol=protocol.model_copy(update={"seeds": [seed]}))
                order = drawn_order([task.name for task in of_seed], seed)
                run.into(folders[-1], {seed: [of_seed[index] for index in order]})
        for each in permutations(range(len(protocol.tasks))) if protocol.orderings == "all" else ():
            folders.append(out / ("order-" + "-".join(str(index + 1) for index in each)))
            self.into(folders[-1], {seed: [of_seed[index] for index in each] for seed, of_seed in tasks.items()})
        results = [read_results(folder) for folder in folders]
        console.print(orders_table(results, console.width))
        return results[0]

    def into(self, path: Path, tasks: Mapping[int, Sequence[Task]]) -> None:
        """Run, or go on, and report. Of several processes the first one writes and speaks."""
        is_first = self.world.rank == 0
        console = Terminal(quiet=self.quiet or not is_first)
        names = [task.name for task in next(iter(tasks.values()))]
        protocol = self.protocol.model_copy(update={"tasks": names})
        folder = RunFolder(path)
        identity = identity_of(protocol, self.backend, self.model)
        prints = {f"tasks-{seed}.json": {task.name: fingerprint(task) for task in of} for seed, of in tasks.items()}
        record = run_record(protocol, self.backend, self.model, self.threads)
        self.world.agree(
            {
                "protocol": digest_of({**record["config"], **dict.fromkeys(WORDS)}),
                "model": digest_of(identity["model"]),
                "data": digest_of(prints),
                "versions": digest_of(record["versions"]),
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
            with closing(log), Progress(console, weights) as progress:
                run_session(protocol, tasks, self.model, self.make_engine, folder, progress, log)
            if is_first:
                show_report(folder.path, console)


def _cost(protocol: Protocol, name: str) -> float:
    """Of a token in a condition, beside the others."""
    condition = protocol.condition(name)
    work = condition.method.work(condition.settings(protocol), protocol.batch_size, EVALUATION_COST)
    return condition.epochs * work * (1.6 if condition.trains == "full" else 1.0)  # the last measured on a CPU


def show_report(folder: Path, console: Terminal) -> None:
    """Print the table of a run folder, and write its pictures and HTML page."""
    written = write_report(folder)  # which also checks the folder's files
    results = read_results(folder)
    console.print(summary_table(results, console.width))
    console.print(f"report: {written[-1]}", soft_wrap=True, markup=False, highlight=False)
