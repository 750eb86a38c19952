"""The Triton kernels beside plain PyTorch in float64, whatever the size, dtype and memory; and whether bits repeat."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.gpu.report import Report, at_most, same_bits
from bench.projections import package

#: (n, rank, d), n up to 64 and n r up to 512
SHAPES = [(1, 1, 19), (4, 4, 576), (2, 3, 40), (3, 7, 131), (5, 1, 33), (8, 8, 1000), (16, 16, 530), (33, 2, 300)]
SHAPES += [(64, 8, 600)]
TIMES = 20


def agreement(report: Report) -> None:
    """Every dtype of x by every shape; projections of every n; arrays that lie oddly in memory."""
    for name in ("float32", "bfloat16", "float16", "float64"):
        for n, rank, d in SHAPES[:2] if report.small else SHAPES:
            with report.part(f"mixing, x {name}, n = {n}, r = {rank}, d = {d}") as figures:
                kernels, values = _kernels(), _inputs(report, 40 if report.small else 1030, d, n, rank)
                import torch

                from backends.torch.kernels.agreement import random_cotangent, rounding_shares

                x = values[0].to(getattr(torch, name))
                cotangent = random_cotangent(values).to(x.dtype)
                shares = rounding_shares(kernels.residual_mixing, [x, *values[1:]], cotangent)
                # A product in tf32x3 keeps 21 to 22 of 24 bits.
                most = 4.0 if x.dtype.itemsize == 2 else 1.0
                for result, share in shares.items():
                    at_most(figures, f"share of the bound, {result}", share, most)
    for n in (2, 4) if report.small else (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 48, 63, 64):
        with report.part(f"projection, n = {n}") as figures:
            kernels = _kernels()
            import torch

            from bench.accuracy import double, mixing_accuracy, projection_gradient_error
            from bench.projections import ITERATIONS

            logits, cotangent = (2 * torch.randn(48, n, n, device=report.device) for _ in range(2))
            accuracy = mixing_accuracy(double(kernels.sinkhorn_projection(logits)), double(logits), ITERATIONS)
            for name in ("sum_error", "norm_excess"):
                at_most(figures, name, accuracy[name], 5e-7 * max(1, n / 16))
            at_most(figures, "difference", accuracy["difference"], 1e-4)
            if n > 1:  # of one entry, which is always 1, it is zero
                error = projection_gradient_error(kernels.sinkhorn_projection, logits, cotangent, ITERATIONS)
                at_most(figures, "gradient_error", error, 1e-3)
    for name, change in _layouts().items():
        with report.part(f"memory, {name}"):
            kernels, values = _kernels(), _inputs(report, 65, 40, 3, 4)
            same_bits(name, _results(kernels, [change(value) for value in values]), _results(kernels, values))


def determinism(report: Report) -> None:
    """Equal bits of equal calls, however often, and however much other memory is in use meanwhile."""
    with report.part("adapter"):
        kernels, values = _kernels(), _inputs(report, 40 if report.small else 8192, 64 if report.small else 4096, 4, 4)
        import torch

        values[0] = values[0].to(torch.bfloat16)
        _repeated("adapter", report, lambda: _results(kernels, values))
    with report.part("projection"):
        kernels = _kernels()
        import torch

        logits = torch.randn(48, 4, 4, device=report.device)
        _repeated("projection", report, lambda: _results(kernels, [logits], projection=True))
    with report.part("training steps"):
        same_bits("training steps", *(_losses(report) for _ in range(2)))


def _losses(report: Report) -> list[Any]:
    """Of the steps of a small model, with deterministic operations for what is not this project's."""
    import torch

    from bench.gpu.models import Trained

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        trained = Trained("tinyllama-1.1b", report.device, reduced=True)
        trained.attach()
        return [trained.step() for _ in range(2 if report.small else 10)]
    finally:
        torch.use_deterministic_algorithms(before)


def _repeated(name: str, report: Report, work: Callable[[], Sequence[Any]]) -> None:
    import torch

    first, held = work(), []
    for index in range(2 if report.small else TIMES):
        held.append(torch.ones(1000 * index + 1, device=report.device))  # so that results lie elsewhere
        same_bits(name, work(), first)


def _results(kernels: Any, values: Sequence[Any], *, projection: bool = False) -> list[Any]:
    import torch

    from backends.torch.kernels.agreement import value_and_gradients

    cotangent = torch.linspace(-1, 1, values[0].numel(), device=values[0].device).view(values[0].shape)
    function = kernels.sinkhorn_projection if projection else kernels.residual_mixing
    return value_and_gradients(function, values, cotangent)


def _layouts() -> dict[str, Callable[[Any], Any]]:
    """The same values otherwise in memory."""
    return {"transposed": _transposed, "every other place": _every_other, "one place off": _off_by_one}


def _transposed(value: Any) -> Any:
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def _every_other(value: Any) -> Any:
    import torch

    return torch.stack([value, -value], dim=-1)[..., 0]


def _off_by_one(value: Any) -> Any:
    """At an address that is no multiple of 16 bytes."""
    import torch

    return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


def _kernels() -> Any:
    return package("backends.torch.kernels", "triton")


def _inputs(report: Report, tokens: int, d: int, n: int, rank: int) -> list[Any]:
    from backends.torch.kernels.agreement import inputs

    return inputs((tokens,), d, n, rank, report.device)
