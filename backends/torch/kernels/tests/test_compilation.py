"""The kernels compile for GPUs without one at hand, in a process that does not interpret them.

It says that Triton's compiler and the assembler accept them, for two generations of GPUs, and what they take of its
shared memory; nothing about their results or their speed.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

SHARED_MEMORY = 99 * 1024  # bytes that a block may have on every GPU from 8.0 on
GENERATIONS = (80, 90)


def compile_all(generation: int) -> dict[str, int]:
    """Shared memory of each kernel in bytes, for matrices of 4 and 64, and for n r of 16 to 512."""
    import importlib

    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource, compile  # type: ignore[import-untyped]

    def module(name):
        return importlib.import_module(f"backends.torch.kernels.{name}")

    used = {}

    def build(function, pointers, integers, arguments):
        options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
        constants = {name: value for name, value in arguments.items() if name not in options}
        signature = dict.fromkeys(function.arg_names, "*fp32") | pointers | dict.fromkeys(integers, "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=function, signature=signature, constexprs=constants)
        built = compile(source, target=GPUTarget("cuda", generation, 32), options=options)
        used[f"{function.__name__} {pointers} {arguments}"] = built.metadata.shared

    projection, tokens, basis = (module(name) for name in ("projection_kernels", "token_kernels", "basis_kernels"))
    for n, block, warps in ((4, 8, 1), (64, 1, 8)):
        arguments = {"ITERATIONS": 20, "BLOCK": block, "N": n, "num_warps": warps}
        for function in (projection.forward_kernel, projection.backward_kernel):
            build(function, {}, ("batch", "n"), arguments)
    for name, dtype in (("*bf16", torch.bfloat16), ("*fp32", torch.float32)):
        for width, rows in ((16, 64), (64, 64), (128, 16), (256, 16), (512, 16)):
            blocks = module("launch").Blocks(rows, min(rows, 32), module("launch").places_for(width), width, 1, 4)
            constants = {"d": 4096, **tokens.constants(blocks, torch.empty(0, dtype=dtype))}
            arguments = {"WRITE": True, "BLOCK_T": blocks.rows, **constants}
            build(tokens.token_kernel, {"x_ptr": name, "y_ptr": name}, ("tokens", "width"), arguments)
            pointers = {"x_ptr": name, "upstream_ptr": name, "grad_ptr": name}
            arguments = {"STEPS": blocks.steps, "BLOCK_T": blocks.tile, **constants}
            build(tokens.gradient_kernel, pointers, ("tokens", "width", "splits"), arguments)
    constants = {"PARTS": 4, "HAS_P": True, "HAS_Q": True, "HAS_BASIS": True, "N": 16, "BLOCK": 128, "num_warps": 4}
    build(basis._mix_kernel, {}, ("n", "columns", "splits"), constants)
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
    assert len(used) == 25
    assert max(used.values()) <= SHARED_MEMORY, used
