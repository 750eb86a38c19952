"""The kernels lower to Triton for CUDA without a GPU at hand, and Triton's compiler takes what comes out.

That says nothing about their results on a GPU or their speed, but that no operation is missing, that all blocks have
sizes that Triton knows, and that shared memory suffices.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.interpreters import mlir
from jax.sharding import AxisType, PartitionSpec

from backends.jax import adapter_forward
from backends.jax.kernels import residual_mixing as mixing_kernels
from backends.jax.kernels import sinkhorn_projection as projection_kernels
from backends.jax.kernels.lowering import lowered, lowered_mixing, lowered_projection

SHARED_MEMORY = 99 * 1024  # bytes that a block may have on every GPU from 8.0 on
GENERATIONS = (80, 90)

# (n, iterations) of 5 matrices; (tokens, d, n, r, dtype of x)
PROJECTIONS = [(4, 20), (3, 1), (64, 20)]
MIXINGS = [(300, 1000, 4, 4, "bfloat16"), (40, 576, 4, 4, "float32"), (17, 19, 3, 2, "float16")]
WIDE_MIXINGS = [
    (4096, 4096, n, rank, dtype)
    for n, rank in ((8, 8), (16, 8), (16, 16), (64, 8))
    for dtype in ("float32", "bfloat16")
]


def kernels_of(program: Any) -> Iterator[Any]:
    """The settings of each kernel: its name, its warps and stages, its Triton module."""
    calls: list[Any] = []

    def collect(operation: Any) -> Any:
        if operation.name == "stablehlo.custom_call" and "triton" in str(operation.attributes["call_target_name"]):
            calls.append(operation)
        return mlir.ir.WalkResult.ADVANCE

    program.compiler_ir().operation.walk(collect)
    for call in calls:
        yield call.attributes["mhlo.backend_config"]


needs_separate_compilation = pytest.mark.skipif(
    tuple(map(int, metadata.version("jaxlib").split(".")[:3])) > (0, 10, 2),
    reason="from here on JAX compiles a kernel while it lowers it, which takes the plugin for a GPU",
)


@needs_separate_compilation
@pytest.mark.clause("SINK-2")
@pytest.mark.parametrize(("n", "iterations"), PROJECTIONS)
def test_the_projection_lowers_to_triton(n: int, iterations: int) -> None:
    names = [kernel["name"].value for kernel in kernels_of(lowered_projection(n, iterations))]
    assert names == ["forward_kernel", "backward_kernel"]


@needs_separate_compilation
@pytest.mark.clause("MIX-1", "MIX-10")
@pytest.mark.parametrize("sizes", MIXINGS)
def test_the_mixing_lowers_to_triton_without_tf32(sizes: Any) -> None:
    kernels = list(kernels_of(lowered_mixing(*sizes)))
    assert sorted(kernel["name"].value for kernel in kernels) == [
        "forward_kernel",
        "gradient_kernel",
        "streams_kernel",
        "streams_kernel",
    ]
    for kernel in kernels:
        text = triton_text(kernel)
        assert "tt.dot" in text
        assert "tf32" not in text


@needs_separate_compilation
@pytest.mark.parametrize("check_vma", [True, False])
def test_they_lower_inside_shard_map(check_vma: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mixing_kernels, projection_kernels):
        monkeypatch.setattr(module, "interpreted", lambda **arrays: False)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("data")
    by_device = jax.shard_map(
        lambda x, s, gamma, a: adapter_forward(x, s, gamma, a, 2, "pallas"),
        mesh=mesh,
        in_specs=(split, whole, whole, whole),
        out_specs=split,
        check_vma=check_vma,
    )
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((6, 23), (3, 3), (), (3, 2, 23))]
    assert len(list(kernels_of(lowered(by_device, *shapes)))) == 6


def triton_text(kernel: Any) -> str:
    from jaxlib.triton import dialect

    context = mlir.make_ir_context()
    dialect.register_dialect(context)
    context.load_all_available_dialects()
    with context:
        return str(mlir.ir.Module.parse(kernel["ir"].value_bytes).operation.get_asm(enable_debug_info=False))


def compile_all(folder: Path) -> None:
    """Print the shared memory in bytes of each kernel."""
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import compile  # type: ignore[import-untyped]

    programs = [lowered_projection(*sizes) for sizes in PROJECTIONS]
    programs += [lowered_mixing(*sizes) for sizes in MIXINGS + WIDE_MIXINGS]
    for number, kernel in enumerate(kernel for program in programs for kernel in kernels_of(program)):
        source = folder / f"{number}.ttir"
        source.write_text(triton_text(kernel))
        options = {"num_warps": kernel["num_warps"].value, "num_stages": kernel["num_stages"].value}
        for generation in GENERATIONS:
            built = compile(str(source), target=GPUTarget("cuda", generation, 32), options=options)
            print(built.metadata.shared)


@needs_separate_compilation
@pytest.mark.slow
def test_triton_compiles_the_kernels_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    code = f"from pathlib import Path; from {__name__} import compile_all; compile_all(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = list(map(int, done.stdout.split()))
    assert len(used) == len(GENERATIONS) * (2 * len(PROJECTIONS) + 4 * len(MIXINGS + WIDE_MIXINGS))
    assert max(used) <= SHARED_MEMORY, used
