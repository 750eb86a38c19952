"""Tensors of more than 2^31 elements, where an index of 32 bits would overflow."""

from collections.abc import Callable
from typing import Any

from bench.gpu.report import NotHere, Report, at_most
from bench.projections import package

BEYOND = 2**31
WINDOW = 64
CHUNK = 2**14


def large_tensors(report: Report) -> None:
    """x of (tokens, 4096) in bfloat16 with its gradients, and a stack of matrices; looked at where 2^31 is passed."""
    with report.part("mixing") as figures:
        kernels: Any = package("backends.torch.kernels", "triton")
        d, tokens = (64, 300) if report.small else (4096, BEYOND // 4096 + 3 * WINDOW)
        _need(report, 5 * 2 * tokens * d)
        figures["elements"] = tokens * d
        _mixing(kernels.residual_mixing, report, figures, tokens, d)
    with report.part("projection") as figures:
        kernels = package("backends.torch.kernels", "triton")
        batch = 100 if report.small else BEYOND // 16 + WINDOW
        _need(report, 3 * 4 * batch * 16)
        figures["elements"] = batch * 16
        _projection(kernels.sinkhorn_projection, report, figures, batch)


def _need(report: Report, size: int) -> None:
    if report.small:
        return
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < size:
        raise NotHere(f"{free / 2**30:.0f} GiB of the GPU are free, and {size / 2**30:.0f} needed")


def _mixing(mix: Callable[..., Any], report: Report, figures: dict[str, Any], tokens: int, d: int) -> None:
    import torch

    from backends.torch.kernels.agreement import inputs, value_and_gradients
    from backends.torch.residual_mixing import residual_mixing

    _, *parameters = inputs((1,), d, 4, 4, report.device)
    x, cotangent = (torch.empty(tokens, d, dtype=torch.bfloat16, device=report.device).normal_() for _ in range(2))
    leaves = [value.requires_grad_() for value in (x, *parameters)]
    y = mix(*leaves)
    grad_x, *gradients = torch.autograd.grad(y, leaves, cotangent)
    wide = [parameter.detach().double() for parameter in parameters]
    with torch.no_grad():
        y, x = y.detach(), x.detach()
    middle = min(BEYOND // d, tokens) - WINDOW // 2 if tokens * d > BEYOND else tokens // 2
    for name, first in (("begin", 0), ("middle", middle), ("end", tokens - WINDOW)):
        rows = slice(first, first + WINDOW)
        expected = value_and_gradients(residual_mixing, [x[rows].double(), *wide], cotangent[rows].double())
        for result, left, right in (("y", y, expected[0]), ("dL/dx", grad_x, expected[1])):
            error = (left[rows].double() - right).abs() / right.abs().clamp(min=1e-3)
            at_most(figures, f"relative error of {result}, {name}", float(error.max()), 2.0**-7)
    sums = [torch.zeros_like(value) for value in wide]
    for first in range(0, tokens, CHUNK):
        rows = slice(first, first + CHUNK)
        found = value_and_gradients(residual_mixing, [x[rows].double(), *wide], cotangent[rows].double())
        for total, value in zip(sums, found[2:], strict=True):
            total += value
    for result, left, right in zip(("M", "alpha", "A"), gradients, sums, strict=True):
        at_most(figures, f"relative error of dL/d{result}", float((left.double() - right).norm() / right.norm()), 1e-3)


def _projection(project: Callable[[Any], Any], report: Report, figures: dict[str, Any], batch: int) -> None:
    import torch

    from backends.torch.sinkhorn_projection import sinkhorn_projection

    logits = torch.empty(batch, 4, 4, device=report.device).normal_()
    mixing = project(logits)
    middle = BEYOND // 16 - WINDOW // 2 if batch * 16 > BEYOND else batch // 2
    for name, first in (("begin", 0), ("middle", middle), ("end", batch - WINDOW)):
        rows = slice(first, first + WINDOW)
        error = (mixing[rows].double() - sinkhorn_projection(logits[rows].double())).abs().max()
        at_most(figures, f"error, {name}", float(error), 1e-5)
