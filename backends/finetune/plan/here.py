"""What of a plan depends on this machine: its memory, the models, texts and tokenizers on it, and how fast it is."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from backends import load_backend
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.marker import random_size
from backends.finetune.models.random_weights import Size, random_model_folder
from backends.finetune.models.resolve import resolve_model
from backends.finetune.models.zoo import find_model
from backends.finetune.plan.duration import UTILIZATION, Rates
from backends.finetune.plan.estimate import Machine
from backends.finetune.plan.measure import extrapolate, measure
from backends.finetune.plan.memory import CUDA_CONTEXT
from backends.finetune.plan.skeleton import read_architecture
from backends.finetune.plan.work import PhaseWork, most_work, orders, work_of
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.named import named_task
from backends.finetune.tasks.task import Task, check_tasks
from backends.finetune.tasks.texts import said_of
from reference.errors import CRMAError, ModelError


def this_machine(
    backend: str, devices: int, shard: bool, memory: float | None, throughput: float | None
) -> tuple[Machine, float | None]:
    """The machine, and the bytes of one device, where they are known."""
    device = backend.partition("-")[2]
    on_cuda = device == "cuda"
    libraries = float(CUDA_CONTEXT if on_cuda else psutil.Process().memory_info().rss)
    limit = None if memory is None else memory * 2**30
    if limit is None and not on_cuda:
        limit = float(psutil.virtual_memory().total)
    elif limit is None and torch.cuda.is_available():
        limit = float(torch.cuda.get_device_properties(0).total_memory)
    peak = None if throughput is None else throughput * 1e12
    return Machine(device, devices, shard, libraries, peak, every_logit=backend.startswith("jax")), limit


def model_folder(name: str, random_weights: Size | None, notes: list[str]) -> tuple[Path, bool, str | None]:
    """The model's folder, whether its tokenizer is in it, and the size of random weights. A model that is not on this
    machine is planned from its published configuration.
    """
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


def work_here(protocol: Protocol, own_tasks: list[Task], folder: Path | None, notes: list[str]) -> list[PhaseWork]:
    """Exact where the texts and the model's own tokenizer are here."""
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


def measured_rates(protocol: Protocol, backend: str, folder: Path, work: list[PhaseWork]) -> dict[str, Rates]:
    """Of each condition, with the model in ``folder``."""
    load_backend(backend)  # a missing device is one clear error
    make_engine, _ = engine_factory(backend)
    jobs = {name: Job(folder, protocol, protocol.condition(name), protocol.seeds[0]) for name in protocol.conditions}
    return {name: measure(job, work, make_engine) for name, job in jobs.items()}


def extrapolated_rates(
    protocol: Protocol, backend: str, folder: Path, work: list[PhaseWork], few: int, notes: list[str]
) -> dict[str, Rates]:
    """From models of ``few`` and of twice as many layers to the one in ``folder``."""
    depths = (few, 2 * few)
    layers = read_architecture(folder).num_hidden_layers
    of_few, of_more = (
        measured_rates(protocol, backend, random_model_folder(protocol.model, size="full", layers=depth), work)
        for depth in depths
    )
    notes.append(
        f"time: extrapolated linearly to {layers} layers from steps just measured here with random weights in "
        f"{depths[0]} and {depths[1]} layers"
    )
    return {name: extrapolate(of_few[name], of_more[name], depths, layers) for name in protocol.conditions}


def explained(protocol: Protocol, backend: str, machine: Machine, *, is_measured: bool) -> list[str]:
    """What memory and time rest on."""
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
