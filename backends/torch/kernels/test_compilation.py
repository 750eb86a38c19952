"""The kernels compile for GPUs without one at hand, in a process that does not interpret them.

It says that Triton's compiler and the assembler accept them, for two generations of GPUs, and what they take of its
shared memory; nothing about their results or their speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SHARED_MEMORY = 99 * 1024  # bytes that a block may have on every GPU from 8.0 on
GENERATIONS = (80, 90)


def compile_all(generation: int) -> dict[str, int]:
    """Shared memory of each kernel in bytes, for matrices of 4 and 64, and for n r of 16, 128 and 256."""
    import importlib

    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource, compile  # type: ignore[import-untyped]

    def module(name):
        return importlib.import_module(f"backends.torch.kernels.{name}")

    used = {}

    def build(function, pointers, integers, constants, warps):
        signature = dict.fromkeys(function.arg_names, "*fp32") | pointers | dict.fromkeys(integers, "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=function, signature=signature, constexprs=constants)
        built = compile(source, target=GPUTarget("cuda", generation, 32), options={"num_warps": warps})
        used[f"{function.__name__} {constants}"] = built.metadata.shared

    projection, tokens, basis = (module(name) for name in ("projection_kernels", "token_kernels", "basis_kernels"))
    for n, block, warps in ((4, 8, 1), (64, 1, 8)):
        for function in (projection.forward_kernel, projection.backward_kernel):
            build(function, {}, ("batch", "n"), {"ITERATIONS": 20, "BLOCK": block, "N": n}, warps)
    for dtype, precision in (("*bf16", "tf32x3"), ("*fp32", "ieee")):
        for width, rows, places in ((16, 64, 64), (128, 16, 32), (256, 16, 16)):
            both = {"d": 4096, "BLOCK_D": places, "W": width, "PRECISION": precision, "ROUND": False}
            constants = {"WRITE": True, "BLOCK_T": rows, **both}
            pointers = {"x_ptr": dtype, "y_ptr": dtype}
            build(tokens.token_kernel, pointers, ("tokens", "width"), constants, 8)
            constants = {"STEPS": 4, "BLOCK_T": min(rows, 32), **both}
            pointers = {"x_ptr": dtype, "upstream_ptr": dtype, "grad_ptr": dtype}
            build(tokens.gradient_kernel, pointers, ("tokens", "width", "splits"), constants, 8)
    constants = {"PARTS": 4, "HAS_P": True, "HAS_Q": True, "HAS_BASIS": True, "N": 16, "BLOCK": 128}
    build(basis._mix_kernel, {}, ("n", "columns", "splits"), constants, 4)
    return used


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_kernels_compile_without_a_gpu(generation, tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    code = f"import json; from {__name__} import compile_all; print(json.dumps(compile_all({generation})))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    assert len(used) == 17
    assert max(used.values()) <= SHARED_MEMORY, used
