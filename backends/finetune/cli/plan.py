"""``crma plan``: parameters, memory, steps, time and disk of a protocol on a machine, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backends.finetune.cli.options import TASK_FORM, Backend, ProtocolName, Settings, Size, Threads, option
from reference.errors import ConfigError

if TYPE_CHECKING:
    from backends.finetune.plan.duration import Rates
    from backends.finetune.plan.estimate import Machine
    from backends.finetune.plan.work import PhaseWork
    from backends.finetune.protocols.protocol import Protocol

TOO_LARGE = 1


def plan(
    protocol: ProtocolName,
    model: Annotated[
        str | None, option(help="a local Hugging Face folder, smollm2, or a model of the zoo, here or not")
    ] = None,
    backend: Backend = "torch-cpu",
    devices: Annotated[int, option(help="processes or devices that share each batch (default: 1)")] = 1,
    shard: Annotated[bool, option("--shard", help="spread the frozen weights over the devices")] = False,
    memory: Annotated[float | None, option(metavar="GIB", help="of one device (default: this machine's)")] = None,
    throughput: Annotated[
        float | None, option(metavar="TFLOPS", help="peak of one device, from its data sheet")
    ] = None,
    precision: Annotated[
        Literal["float32", "mixed", "bfloat16"] | None, option(help="instead of the protocol's")
    ] = None,
    conditions: Annotated[list[str] | None, option(metavar="CONDITION...", help="instead of the protocol's")] = None,
    task: Annotated[list[str] | None, option(metavar=TASK_FORM, help="as for `crma finetune`")] = None,
    settings: Settings = None,
    random_weights: Annotated[Size | None, option(help="as for `crma finetune`")] = None,
    measure: Annotated[bool, option("--measure", help="time three steps of each condition on this machine")] = False,
    measure_layers: Annotated[
        int | None,
        option(
            metavar="N",
            help="the same with random weights in N and in 2N layers, and a straight line from there to all of them",
        ),
    ] = None,
    threads: Threads = None,
) -> int:
    """Print the plan; 1 if a condition does not fit the memory that is given or found. Raises: CRMAErrors."""
    if measure and measure_layers is not None:
        raise typer.BadParameter("not allowed with argument --measure", param_hint="--measure-layers")
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.models.check_fits import check_fits
    from backends.finetune.plan.estimate import make_plan
    from backends.finetune.plan.show import GIB, show_plan
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.protocols.supported import check_backend, check_supported
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.threads import set_up_framework

    check_backend(backend)
    _check_numbers(devices=devices, memory=memory, throughput=throughput, measure_layers=measure_layers)
    if measure_layers and backend.startswith("jax"):
        raise ConfigError(
            "--measure-layers",
            got=f"{measure_layers} with {backend}",
            allowed="torch-cpu or torch-cuda, which draw weights; a JAX backend reads them from files",
            remedy="--measure, or --backend torch-cpu or torch-cuda",
        )
    own_tasks = parse_task_options(task or [])
    loaded = load_protocol(
        protocol,
        settings or [],
        model=model,
        precision=precision,
        conditions=conditions or None,
        tasks=[task.name for task in own_tasks] or None,
    )

    def check(size: str | None) -> None:
        """What `crma finetune` refuses has no plan."""
        check_supported(loaded, map(parse_condition, loaded.conditions), backend, shard=shard, random_weights=size)

    check("full" if measure_layers else random_weights)
    set_up_framework(backend, threads)
    machine, limit = _machine(backend, devices, shard, memory, throughput)
    notes: list[str] = []
    folder, is_here, size = _folder(loaded.model, random_weights, notes)
    check(size)
    check_fits(folder, loaded)
    work = _work(loaded, own_tasks, folder if is_here else None, notes)
    measured: dict[str, Rates] = {}
    if measure:
        measured = _measure(loaded, backend, folder, work)
        notes.append("time: from three steps and one evaluation of each condition, just measured here on random tokens")
    elif measure_layers:
        measured = _extrapolate(loaded, backend, folder, work, measure_layers, notes)
    plan = make_plan(folder, loaded, work, machine, measured)
    notes += _explained(loaded, backend, machine, is_measured=bool(measured))
    show_plan(Terminal(), plan, loaded, notes, limit)
    too_large = [name for name, condition in plan.conditions.items() if limit and condition.peak > limit]
    if too_large and limit:
        print(f"too large for {limit / GIB:.1f} GiB: {', '.join(too_large)}")
    return TOO_LARGE if too_large else 0


def _check_numbers(**numbers: float | None) -> None:
    # In GiB, TFLOP/s and layers: what no machine and no model has.
    for name, most in {"devices": 1e6, "memory": 1e9, "throughput": 1e9, "measure_layers": 1e3}.items():
        value = numbers[name]
        if value is not None and not 0 < value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')}", got=value, allowed=f"a number > 0, at most {most:g}", remedy="correct it"
            )


def _machine(
    backend: str, devices: int, shard: bool, memory: float | None, throughput: float | None
) -> tuple[Machine, float | None]:
    """The machine, and the bytes of one device, where they are known."""
    import psutil  # type: ignore[import-untyped]
    import torch

    from backends.finetune.plan.estimate import Machine
    from backends.finetune.plan.memory import CUDA_CONTEXT

    device = backend.partition("-")[2]
    on_cuda = device == "cuda"
    libraries = float(CUDA_CONTEXT if on_cuda else psutil.Process().memory_info().rss)
    limit = None if memory is None else memory * 2**30
    if limit is None and not on_cuda:
        limit = float(psutil.virtual_memory().total)
    elif limit is None and torch.cuda.is_available():
        limit = float(torch.cuda.get_device_properties(0).total_memory)
    peak = None if throughput is None else throughput * 1e12
    return Machine(device, devices, shard, libraries, peak), limit


def _folder(name: str, random_weights: Size | None, notes: list[str]) -> tuple[Path, bool, Size | None]:
    """The model's folder, whether its tokenizer is in it, and the size of random weights. A model that is not on this
    machine is planned from its published configuration.
    """
    from backends.finetune.models.marker import random_size
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.models.resolve import resolve_model
    from backends.finetune.models.zoo import find_model
    from reference.errors import ModelError

    if random_weights is not None:
        notes.append(f"random weights ({random_weights} size): what is learned from them means nothing")
        return random_model_folder(name, size=random_weights), True, random_weights
    try:
        folder = resolve_model(name)
    except ModelError:
        if (model := find_model(name)) is None:
            raise
        notes.append(f"the weights of {model.hub_id} are not on this machine; planned from its published configuration")
        return random_model_folder(model.name, size="full"), False, None
    if (size := random_size(folder)) is not None:
        notes.append("random weights: what is learned from them means nothing")
    return folder, True, size


def _work(protocol: Protocol, own_tasks: list[Any], folder: Path | None, notes: list[str]) -> list[PhaseWork]:
    """Exact where the texts and the model's own tokenizer are here."""
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.plan.work import most_work, work_of
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.named import named_task
    from backends.finetune.tasks.task import check_tasks
    from backends.finetune.tasks.texts import said_of
    from reference.errors import CRMAError

    seed = protocol.seeds[0]
    if folder is None:
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


def _measure(protocol: Protocol, backend: str, folder: Path, work: list[PhaseWork]) -> dict[str, Rates]:
    """Of each condition, with the model in ``folder``."""
    from backends import load_backend
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.plan.measure import measure
    from backends.finetune.tasks.job import Job

    load_backend(backend)  # a missing device is one clear error
    make_engine, _ = engine_factory(backend)
    jobs = {name: Job(folder, protocol, parse_condition(name), protocol.seeds[0]) for name in protocol.conditions}
    return {name: measure(job, work, make_engine) for name, job in jobs.items()}


def _extrapolate(
    protocol: Protocol, backend: str, folder: Path, work: list[PhaseWork], few: int, notes: list[str]
) -> dict[str, Rates]:
    """From models of ``few`` and of twice as many layers to the one in ``folder``."""
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.plan.measure import extrapolate
    from backends.finetune.plan.skeleton import read_architecture

    depths = (few, 2 * few)
    layers = read_architecture(folder).num_hidden_layers
    of_few, of_more = (
        _measure(protocol, backend, random_model_folder(protocol.model, size="full", layers=depth), work)
        for depth in depths
    )
    notes.append(
        f"time: extrapolated linearly to {layers} layers from steps just measured here with random weights in "
        f"{depths[0]} and {depths[1]} layers"
    )
    return {name: extrapolate(of_few[name], of_more[name], depths, layers) for name in protocol.conditions}


def _explained(protocol: Protocol, backend: str, machine: Machine, *, is_measured: bool) -> list[str]:
    """What memory and time rest on."""
    from backends.finetune.plan.duration import UTILIZATION
    from backends.finetune.plan.work import orders

    notes = []
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
    if backend.startswith("jax"):
        notes.append("XLA plans buffers its own way: memory and time of the JAX backend are only near these")
    if is_measured:
        if machine.devices > 1:
            notes.append("time is measured with one process, which computes whole batches; several share them")
    elif machine.peak is None:
        notes.append("time: --measure times steps on this machine; --throughput takes a device's peak in TFLOP/s")
    else:
        low, high = (f"{100 * share:.0f}%" for share in UTILIZATION)
        notes.append(f"time: at {low} to {high} of the stated peak, a range as wide as machines and batches differ")
    return notes
