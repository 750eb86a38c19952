"""``crma plan``: parameters, memory, steps, time and disk of a protocol on a machine, before anything starts."""

from typing import Annotated, Literal

import typer

from backends.finetune.cli.options import TASK_FORM, Backend, ProtocolName, Settings, Size, Threads, option
from reference.errors import ConfigError

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
    from backends.finetune.models.check_fits import check_fits
    from backends.finetune.plan.estimate import make_plan
    from backends.finetune.plan.here import (
        explained,
        extrapolated_rates,
        measured_rates,
        model_folder,
        this_machine,
        work_here,
    )
    from backends.finetune.plan.show import GIB, show_plan
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.protocols.supported import check_backend, check_supported
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.precision import on_this_processor
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
        check_supported(loaded, map(loaded.condition, loaded.conditions), backend, shard=shard, random_weights=size)

    check("full" if measure_layers else random_weights)
    set_up_framework(backend, threads)
    machine, limit = this_machine(backend, devices, shard, memory, throughput)
    chosen = [f"precision={precision}"] if precision else settings or []
    loaded, said = on_this_processor(loaded, backend, chosen)
    notes = [said] if said else []
    folder, is_here, size = model_folder(loaded.model, random_weights, notes)
    check(size)
    check_fits(folder, loaded)
    work = work_here(loaded, own_tasks, folder if is_here else None, notes)
    measured = {}
    if measure:
        measured = measured_rates(loaded, backend, folder, work)
        notes.append("time: from three steps and one evaluation of each condition, just measured here on random tokens")
    elif measure_layers:
        measured = extrapolated_rates(loaded, backend, folder, work, measure_layers, notes)
    plan = make_plan(folder, loaded, work, machine, measured)
    notes += explained(loaded, backend, machine, is_measured=bool(measured))
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
