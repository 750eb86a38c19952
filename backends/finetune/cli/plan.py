"""``crma plan``: parameters, memory, steps, time and disk of a protocol on a machine, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import BadParameter, Option

from backends.finetune.cli.options import Backend, OwnTasks, Protocol, Settings, Size, Threads

if TYPE_CHECKING:
    from backends.finetune.plan.duration import Rates
    from backends.finetune.plan.estimate import Machine
    from backends.finetune.plan.work import PhaseWork
    from backends.finetune.protocols.protocol import Protocol as RunProtocol

TOO_LARGE = 1


@dataclass(frozen=True)
class Options:
    """What ``crma plan`` is asked, beside the protocol."""

    backend: str
    devices: int
    shard: bool
    memory: float | None
    throughput: float | None
    random_weights: Size | None
    measure: bool
    measure_layers: int | None


def plan(
    protocol: Protocol,
    model: Annotated[
        str | None, Option(help="a local Hugging Face folder, smollm2, or a model of the zoo, here or not")
    ] = None,
    backend: Backend = "torch-cpu",
    devices: Annotated[int, Option(help="processes or devices that share each batch")] = 1,
    shard: Annotated[bool, Option("--shard", help="spread the frozen weights over the devices")] = False,
    memory: Annotated[float | None, Option(metavar="GIB", help="of one device (default: this machine's)")] = None,
    throughput: Annotated[
        float | None, Option(metavar="TFLOPS", help="peak of one device, from its data sheet")
    ] = None,
    precision: Annotated[
        Literal["float32", "mixed", "bfloat16"] | None, Option(help="instead of the protocol's")
    ] = None,
    conditions: Annotated[list[str] | None, Option(metavar="CONDITION ...", help="instead of the protocol's")] = None,
    task: OwnTasks = None,
    settings: Settings = None,
    random_weights: Annotated[Size | None, Option(help="as for `crma finetune`")] = None,
    measure: Annotated[bool, Option("--measure", help="time three steps of each condition on this machine")] = False,
    measure_layers: Annotated[
        int | None,
        Option(
            metavar="N",
            help="the same with random weights in N and in 2N layers, and a straight line from there to all of them",
        ),
    ] = None,
    threads: Threads = None,
) -> int:
    """Plan a run: parameters, memory, time and disk."""
    if measure and measure_layers is not None:
        raise BadParameter("--measure and --measure-layers: at most one of the two")
    from backends.finetune.models.check_fits import check_fits
    from backends.finetune.plan.estimate import make_plan
    from backends.finetune.plan.show import GIB, show_plan
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.threads import set_up_framework

    options = Options(backend, devices, shard, memory, throughput, random_weights, measure, measure_layers)
    _check(options)
    own_tasks = parse_task_options(task or [])
    loaded = load_protocol(
        protocol,
        settings or [],
        model=model,
        precision=precision,
        conditions=conditions,
        tasks=[of.name for of in own_tasks] or None,
    )
    _check_run(options, loaded, "full" if measure_layers else random_weights)
    set_up_framework(backend, threads)
    machine, limit = _machine(options)
    folder, notes = _folder(options, loaded)
    check_fits(folder, loaded)
    work = _work(loaded, own_tasks, folder, notes)
    measured = _measure(options, loaded, folder, work, notes)
    made = make_plan(folder, loaded, work, machine, measured)
    _explain(options, loaded, machine, notes)
    show_plan(Terminal(), made, loaded, notes, limit)
    too_large = [name for name, condition in made.conditions.items() if limit and condition.peak > limit]
    if too_large and limit:
        print(f"too large for {limit / GIB:.1f} GiB: {', '.join(too_large)}")
    return TOO_LARGE if too_large else 0


def _check(options: Options) -> None:
    from backends.finetune.protocols.supported import check_backend
    from reference.errors import ConfigError

    check_backend(options.backend)
    # In GiB, TFLOP/s and layers: what no machine and no model has.
    for name, most in {"devices": 1e6, "memory": 1e9, "throughput": 1e9, "measure_layers": 1e3}.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')}", got=value, allowed=f"a number > 0, at most {most:g}", remedy="correct it"
            )
    if options.measure_layers and options.backend.startswith("jax"):
        raise ConfigError(
            "--measure-layers",
            got=f"{options.measure_layers} with {options.backend}",
            allowed="torch-cpu or torch-cuda, which draw weights; a JAX backend reads them from files",
            remedy="--measure, or --backend torch-cpu or torch-cuda",
        )


def _check_run(options: Options, protocol: RunProtocol, random_weights: str | None) -> None:
    """What `crma finetune` refuses has no plan. Raises: as ``protocols.supported.check_supported``."""
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.protocols.supported import check_supported

    conditions = map(parse_condition, protocol.conditions)
    check_supported(protocol, conditions, options.backend, shard=options.shard, random_weights=random_weights)


def _machine(options: Options) -> tuple[Machine, float | None]:
    """The machine, and the bytes of one device, where they are known."""
    import psutil  # type: ignore[import-untyped]
    import torch

    from backends.finetune.plan.estimate import Machine
    from backends.finetune.plan.memory import CUDA_CONTEXT

    device = options.backend.partition("-")[2]
    on_cuda = device == "cuda"
    libraries = float(CUDA_CONTEXT if on_cuda else psutil.Process().memory_info().rss)
    limit = None if options.memory is None else options.memory * 2**30
    if limit is None and not on_cuda:
        limit = float(psutil.virtual_memory().total)
    elif limit is None and torch.cuda.is_available():
        limit = float(torch.cuda.get_device_properties(0).total_memory)
    peak = None if options.throughput is None else options.throughput * 1e12
    return Machine(device, options.devices, options.shard, libraries, peak), limit


def _folder(options: Options, protocol: RunProtocol) -> tuple[Path, list[str]]:
    """The model's folder, or, where its weights are not here, its architecture."""
    from backends.finetune.models.marker import random_size
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.models.resolve import resolve_model
    from backends.finetune.models.zoo import find_model
    from reference.errors import ModelError

    if (size := options.random_weights) is not None:
        folder = random_model_folder(protocol.model, size=size)
        return folder, [f"random weights ({size} size): what is learned from them means nothing"]
    try:
        folder = resolve_model(protocol.model)
    except ModelError:
        model = find_model(protocol.model)
        if model is None:
            raise
        note = f"the weights of {model.hub_id} are not on this machine; planned from its published configuration"
        return random_model_folder(model.name, size="full"), [note]
    if (found := random_size(folder)) is None:
        return folder, []
    _check_run(options, protocol, found)
    return folder, ["random weights: what is learned from them means nothing"]


def _work(protocol: RunProtocol, own_tasks: list[Any], folder: Path, notes: list[str]) -> list[PhaseWork]:
    """Exact where the texts and the model's own tokenizer are here."""
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.plan.work import most_work, work_of
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.named import named_task
    from backends.finetune.tasks.task import check_tasks
    from backends.finetune.tasks.texts import said_of
    from reference.errors import CRMAError

    seed = protocol.seeds[0]
    if any("not on this machine" in note for note in notes):
        notes.append("nor is its tokenizer: every text is taken to be max_tokens long, the most it can be")
        return most_work(protocol, own_tasks)
    try:
        tasks = own_tasks or [named_task(protocol, name, seed) for name in protocol.tasks]
    except CRMAError as error:
        notes.append(f"every text is taken to be max_tokens long, the most it can be, since {error}")
        return most_work(protocol, own_tasks)
    notes.append(f"steps and tokens: counted in the texts of seed {seed}, first epoch")
    check_tasks(tasks)
    work = work_of(Encoder(load_tokenizer(folder), protocol), tasks, seed)
    if said := said_of({phase.task: phase.texts for phase in work}):
        notes.append(said)
    return work


def _measure(
    options: Options, protocol: RunProtocol, folder: Path, work: list[PhaseWork], notes: list[str]
) -> dict[str, Rates]:
    if not (options.measure or options.measure_layers):
        return {}
    from backends import load_backend
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.plan.measure import extrapolate, measure
    from backends.finetune.plan.skeleton import read_architecture
    from backends.finetune.tasks.job import Job

    load_backend(options.backend)  # a missing device is one clear error
    make_engine, _ = engine_factory(options.backend)

    def measured(folder: Path, name: str) -> Rates:
        return measure(Job(folder, protocol, parse_condition(name), protocol.seeds[0]), work, make_engine)

    if options.measure:
        notes.append("time: from three steps and one evaluation of each condition, just measured here on random tokens")
        return {name: measured(folder, name) for name in protocol.conditions}
    assert options.measure_layers is not None
    depths = (options.measure_layers, 2 * options.measure_layers)
    few, more = (random_model_folder(protocol.model, size="full", layers=depth) for depth in depths)
    layers = read_architecture(folder).num_hidden_layers
    notes.append(
        f"time: extrapolated linearly to {layers} layers from steps just measured here with random weights in "
        f"{depths[0]} and {depths[1]} layers"
    )
    return {
        name: extrapolate(measured(few, name), measured(more, name), depths, layers) for name in protocol.conditions
    }


def _explain(options: Options, protocol: RunProtocol, machine: Machine, notes: list[str]) -> None:
    """What memory and time rest on."""
    from backends.finetune.plan.duration import UTILIZATION
    from backends.finetune.plan.work import orders

    if orders(protocol) > 1:
        notes.append("every order of the tasks is taken to need what the given one does")
    notes.append(
        "activations: what autograd keeps in a pass of PyTorch's graph without values; not counted are short-lived "
        "buffers and what an allocator leaves unused, so leave some room"
    )
    if machine.device == "cpu":
        notes.append(
            "on Linux, malloc kept a third more in the check of bench/plan_check.py, and a few hundredths with "
            "MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=65536 in the environment"
        )
    if options.backend.startswith("jax"):
        notes.append("XLA plans buffers its own way: memory and time of the JAX backend are only near these")
    if options.measure or options.measure_layers:
        if machine.devices > 1:
            notes.append("time is measured with one process, which computes whole batches; several share them")
    elif machine.peak is None:
        notes.append("time: --measure times steps on this machine; --throughput takes a device's peak in TFLOP/s")
    else:
        low, high = (f"{100 * share:.0f}%" for share in UTILIZATION)
        notes.append(f"time: at {low} to {high} of the stated peak, a range as wide as machines and batches differ")
