"""What a call and a step ask of the GPU's queue: launches, waits of the host, capture in a graph, torch.compile.

A host read is an operation for which the host waits until a value of a tensor is there (``float``, ``if``, a mask as
an index); PyTorch's profiler counts them on every device. The optimizer's own are left out, which are of counters that
it keeps on the CPU. On a GPU, calls of CUDA that wait are counted besides.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from bench.gpu.report import Figures, Report, at_most, same_bits
from bench.projections import package

_READS = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"})
_OPTIMIZER = "Optimizer.step"
#: a displacement budget that no step exceeds
_NO_LIMIT = 0.9
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def counted(work: Callable[[], Any], device: str) -> Figures:
    """Of one call after two that warm up: launches and waits of CUDA (0 on a CPU), and values that the host reads."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        work()
    on_gpu = [ProfilerActivity.CUDA] if device == "cuda" else []
    if device == "cuda":
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiled:
        work()
    events = list(profiled.events())
    names = [event.name for event in events]
    return {
        "launches": sum(name.startswith(_LAUNCHES) for name in names),
        "waits": sum(name.startswith(_WAITS) for name in names),
        "host_reads": sum(event.name in _READS and not _is_inside(event) for event in events),
    }


def _is_inside(event: Any) -> bool:
    """Whether it is a part of another read, or of the optimizer."""
    while (event := event.cpu_parent) is not None:
        if event.name in _READS or event.name.startswith(_OPTIMIZER):
            return True
    return False


def launches(report: Report) -> None:
    """Of the adapter of one layer; of a step of a model without CRMA and with it; of a step of the engine."""
    with report.part("adapter") as figures:
        figures |= counted(_adapter(report), report.device)
        at_most(figures, "host_reads", figures["host_reads"], 0)
    with report.part("step of a model") as figures:
        from bench.gpu.models import Trained

        trained = Trained("tinyllama-1.1b", report.device, reduced=True)
        layers = trained.model.config.num_hidden_layers
        figures["without"] = without = counted(trained.step, report.device)
        trained.attach(_NO_LIMIT)
        figures["with"] = both = counted(trained.step, report.device)
        figures["launches_per_layer"] = (both["launches"] - without["launches"]) / layers
        # One for the budget, and one a layer by which a checkpoint's recomputation knows that no parameter has changed.
        at_most(figures, "host reads of CRMA", both["host_reads"] - without["host_reads"], layers + 1)
    for name, delta, more in (("without a budget", None, 0), ("with a budget that limits nothing", _NO_LIMIT, 1)):
        with report.part(f"step of the engine, {name}") as figures:
            from bench.training_step import Setting, Side

            setting = Setting("tiny", report.device, tokens=32, delta=delta)
            for side, crma in (("frozen", False), ("modular", True)):
                figures[side] = counted(Side(setting, crma=crma).step, report.device)
            frozen, modular = (figures[side]["host_reads"] for side in ("frozen", "modular"))
            at_most(figures, "host reads of CRMA", modular - frozen, more)
            # One of the engine's own; on a GPU transformers may look at the mask besides.
            at_most(figures, "host reads without CRMA", frozen, 1 if report.small else 2)


def cuda_graph(report: Report) -> None:
    """Forward and backward pass of the adapter captured and replayed, to the same bits as without a graph."""
    for name, make in (("adapter", _adapter), ("projection", _projection)):
        with report.part(name) as figures:
            work = make(report)
            expected = work()
            kept: list[Any] = []
            if report.small:
                at_most(figures, "host_reads", counted(work, report.device)["host_reads"], 0)
                continue
            from bench.cuda_graph import gpu_seconds

            seconds = gpu_seconds(partial(_keep, kept, work))
            at_most(figures, "not captured", float(seconds is None), 0)
            figures["seconds"] = seconds
            same_bits(name, kept[-1], expected)  # what the replays have written


def _keep(kept: list[Any], work: Callable[[], Any]) -> None:
    kept.append(work())


def torch_compile(report: Report) -> None:
    """A compiled adapter gives the bits that it gives without, a compiled model the same loss and gradients."""
    backend = "aot_eager" if report.small else "inductor"
    with report.part("adapter"):
        work = _adapter(report)
        same_bits("adapter", _compiled(_mix(), backend, report), work())
    if not report.small:  # a minute on a CPU
        with report.part("model") as figures:
            compiled_model(report.device, backend, figures)


def compiled_model(device: str, backend: str, figures: Figures) -> None:
    """Loss, and gradients of the basis and the gate, of a small model with CRMA beside those without torch.compile."""
    import torch

    from bench.gpu.models import Trained

    torch.compiler.reset()
    trained = Trained("tinyllama-1.1b", device, reduced=True)
    trained.attach()
    expected, gradients = _loss_and_gradients(trained, trained.model)
    loss, others = _loss_and_gradients(trained, torch.compile(trained.model, backend=backend))
    at_most(figures, "relative error of the loss", float((loss - expected).abs() / expected), 1e-4)
    errors = [float((one - two).norm() / two.norm()) for one, two in zip(others, gradients, strict=True)]
    at_most(figures, "relative error of a gradient", max(errors), 1e-2)


def _loss_and_gradients(trained: Any, model: Any) -> tuple[Any, list[Any]]:
    import torch

    loss = model(input_ids=trained.ids, labels=trained.ids, use_cache=False).loss
    # of the basis and the gate: that of M is next to nothing at the start
    leaves = [value for name in ("basis", "gate") for value in trained.backbone.parameter_groups()[name]]
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def _values(report: Report) -> list[Any]:
    import torch

    from backends.torch.kernels.agreement import inputs

    x, *parameters = inputs((32 if report.small else 2048,), 64 if report.small else 4096, 4, 4, report.device)
    return [x.to(torch.bfloat16).requires_grad_(), *(value.requires_grad_() for value in parameters)]


def _mix() -> Callable[..., Any]:
    mix: Callable[..., Any] = package("backends.torch.kernels", "triton").residual_mixing
    return mix


def _adapter(report: Report) -> Callable[[], list[Any]]:
    import torch

    values, mix = _values(report), _mix()
    cotangent = torch.ones_like(values[0])

    def work() -> list[Any]:
        y = mix(*values)
        return [y.detach(), *torch.autograd.grad(y, values, cotangent)]

    return work


def _compiled(mix: Callable[..., Any], backend: str, report: Report) -> list[Any]:
    import torch

    values = _values(report)
    y = torch.compile(mix, backend=backend, fullgraph=True)(*values)
    return [y.detach(), *torch.autograd.grad(y, values, torch.ones_like(values[0]))]


def _projection(report: Report) -> Callable[[], list[Any]]:
    import torch

    project = package("backends.torch.kernels", "triton").sinkhorn_projection
    logits = torch.linspace(-3, 3, 48 * 16, device=report.device).view(48, 4, 4).requires_grad_()

    def work() -> list[Any]:
        mixing = project(logits)
        return [mixing.detach(), *torch.autograd.grad(mixing, [logits], logits.detach())]

    return work
