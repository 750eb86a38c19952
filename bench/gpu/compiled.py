"""The kernels compiled for this GPU: registers, bytes of stack that registers spill to, shared memory."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench.gpu.report import PASSED, Figures, Report, at_most
from bench.projections import package
from reference.errors import BackendError

#: of the Triton variants, those of the small form
_FEW = ("forward_kernel, fp32, n = 4", "token_kernel, x bf16, A fp32, n r = 16, WRITE=False")
_SMALL_GENERATION = 80
_SIZES = [(8192, 4096, 4, 4, "bfloat16"), (300, 576, 4, 4, "float16"), (40, 576, 64, 8, "float32")]


def triton_kernels(report: Report) -> None:
    """Every variant of the Triton kernels, a part each, compiled by several processes."""
    generation, names = _SMALL_GENERATION, list(_FEW)
    with report.part("variants") as figures:
        package("triton", "triton")
        if not report.small:
            import torch

            major, minor = torch.cuda.get_device_capability()
            generation = 10 * major + minor
        os.environ.pop("TRITON_INTERPRET", None)  # nothing interpreted can be compiled; this process runs no kernel
        from backends.torch.kernels import variants

        if not report.small:
            names = [variant.name for variant in variants.variants()]
        figures |= {"generation": generation, "variants": len(names)}
    if report.parts["variants"]["outcome"] != PASSED:
        return
    workers = 1 if report.small else max(1, min(16, len(os.sched_getaffinity(0))))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name, future in [(name, pool.submit(compile_one, name, generation)) for name in names]:
            with report.part(name) as figures:
                figures |= future.result()
                at_most(figures, "shared", figures["shared"], figures.pop("shared_limit"))


def compile_one(name: str, generation: int) -> Figures:
    """What one variant needs; called in a process of its own."""
    from backends.torch.kernels import variants

    started = time.perf_counter()
    variant = next(each for each in variants.variants() if each.name == name)
    used = variants.compiled(variant, generation)
    return {**used._asdict(), "shared_limit": variant.shared_limit, "seconds": round(time.perf_counter() - started, 2)}


def pallas_kernels(report: Report) -> None:
    """The Pallas kernels, forwards and backwards: lowered to Triton for CUDA, and on a GPU compiled for it."""
    for n, iterations in [(4, 20)] if report.small else [(4, 20), (64, 20)]:
        with report.part(f"projection, n = {n}, K = {iterations}") as figures:
            figures |= _lowered("lowered_projection", n, iterations, compiled=not report.small)
    for sizes in _SIZES[1:2] if report.small else _SIZES:
        tokens, d, n, rank, dtype = sizes
        with report.part(f"mixing, {tokens} x {d} {dtype}, n = {n}, r = {rank}") as figures:
            figures |= _lowered("lowered_mixing", *sizes, compiled=not report.small)


def _lowered(function: str, *sizes: int | str, compiled: bool) -> Figures:
    package("jax", "jax")
    os.environ.pop("CRMA_PALLAS_INTERPRET", None)
    started = time.perf_counter()
    program: Any = getattr(package("backends.jax.kernels.lowering", "jax"), function)(*sizes)
    figures: Figures = {"kernels": program.as_text().count("gpu.triton"), "lowering_seconds": _since(started)}
    if not figures["kernels"]:
        raise BackendError("Pallas kernels", got="none", allowed="at least one", remedy="read the lowered program")
    if compiled:
        started = time.perf_counter()
        program.compile()
        figures["compile_seconds"] = _since(started)
    return figures


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)
