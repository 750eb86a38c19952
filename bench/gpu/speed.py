"""Speed of the kernels: the share of a copy's bandwidth, and the projection of 48 layers beside other packages'."""

import time
from collections.abc import Callable
from typing import Any

from bench.gpu.report import Report

LAYERS = 48
#: of the copy's bandwidth: forward, and backward
TARGETS = {"forward_share": 0.80, "backward_share": 0.65}


def bandwidth(report: Report) -> None:
    """:mod:`bench.copy_bandwidth` for two sizes. Shares below the targets are noted; they are no failure."""
    from bench import copy_bandwidth

    small = ["--device", "cpu", "--kernels", "plain", "--copy-mib", "1"]
    for tokens, hidden_size in [(64, 64)] if report.small else [(8192, 4096), (2048, 4096)]:
        with report.part(f"{tokens} x {hidden_size}") as figures:
            sizes = ["--tokens", str(tokens), "--hidden-size", str(hidden_size)]
            found = copy_bandwidth.measure(copy_bandwidth.parsed([*sizes, *(small if report.small else ())]))
            figures |= {name: value for name, value in found.items() if name not in ("machine", "versions")}
            figures |= {f"{name} >= {target}": found[name] >= target for name, target in TARGETS.items()}


def projections(report: Report) -> None:
    """Seconds forwards and with the gradient, and exactness, of each projection whose package is installed."""
    from bench.projections import PLAIN, PROJECTIONS

    for name in PLAIN if report.small else PROJECTIONS:
        with report.part(name) as figures:
            import torch

            from bench.accuracy import double, mixing_accuracy
            from bench.projections import ITERATIONS, projection_named

            torch.compiler.reset()
            project = projection_named(name, report.device)
            logits = torch.randn(LAYERS, 4, 4, generator=torch.Generator().manual_seed(0)).to(report.device)
            leaf, cotangent = logits.clone().requires_grad_(), torch.ones_like(logits).cumsum(0)
            figures |= mixing_accuracy(double(project(logits)), double(logits), ITERATIONS)

            def forward(project: Any = project, logits: Any = logits) -> object:
                return project(logits)

            def both(project: Any = project, leaf: Any = leaf, cotangent: Any = cotangent) -> object:
                return torch.autograd.grad(project(leaf), leaf, cotangent)

            figures |= {"forward": _times(report, forward), "with_gradient": _times(report, both)}


def _times(report: Report, work: Callable[[], object]) -> dict[str, float | None]:
    """Of one call: as it is launched, and as a replay of a CUDA graph where it can be captured."""
    if report.small:
        work()
        started = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - started}
    from bench.cuda_graph import event_seconds, gpu_seconds

    for _ in range(3):
        work()
    return {"seconds": event_seconds(work, 50), "gpu_seconds": gpu_seconds(work)}
