"""Every variant of the kernels, and what a GPU needs for it: compiled for a generation of GPUs without one at hand.

A variant is a kernel with its compile-time arguments, the dtypes of its pointers and the launch settings of
``launch.blocks_for``. Pointers count as aligned to 16 bytes, as PyTorch's are: only then are loads made ahead of their
use, which is what takes shared memory. In a process that interprets the kernels nothing can be compiled.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped]

from backends.torch.kernels import basis_kernels, projection_kernels, token_kernels
from backends.torch.kernels.launch import INTERPRETED, Blocks, most_rows, places_for
from backends.torch.kernels.sinkhorn_projection import settings_for
from reference.errors import BackendError

#: bytes that a block may have on every GPU from 8.0 on, and on those of data centres
SHARED_MEMORY, LARGE_SHARED_MEMORY = 99 * 1024, 163 * 1024
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
#: of x, and of the parameters, in which the kernels compute
DTYPES = (
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float64),
    (torch.float64, torch.float64),
)
SIDES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (16, 32, 64, 128, 256, 512)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


class Variant(NamedTuple):
    """``pointers``: the Triton name of the dtype of each; ``settings``: compile-time arguments, warps and stages."""

    name: str
    kernel: Any
    pointers: dict[str, str]
    settings: dict[str, Any]

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that it may take: more only for sums of float64 over more than 256 n r."""
        large = self.settings.get("W", 0) > 256 and self.pointers["mixed_ptr"] == "*fp64"
        return LARGE_SHARED_MEMORY if large else SHARED_MEMORY


class Usage(NamedTuple):
    """Of one variant: bytes of shared memory a block; registers a thread; bytes of stack a thread, which hold what the
    registers do not.
    """

    shared: int
    registers: int
    stack: int


def variants() -> Iterator[Variant]:
    """All of them, for d = 4096 and K = 20, of names that differ."""
    yield from _projections()
    yield from _over_tokens()
    yield from _of_the_basis()


def _projections() -> Iterator[Variant]:
    for dtype in (torch.float32, torch.float64):
        for side in SIDES:
            settings = {"ITERATIONS": 20, **settings_for(48, side)}
            for kernel in (projection_kernels.forward_kernel, projection_kernels.backward_kernel):
                yield _variant(kernel, f"{NAMES[dtype]}, n = {side}", {"": dtype}, settings)


def _over_tokens() -> Iterator[Variant]:
    for dtype, wide in DTYPES:
        of_x = {"": wide, "x_ptr": dtype, "y_ptr": dtype, "upstream_ptr": dtype, "grad_ptr": dtype}
        for width in WIDTHS:
            block = most_rows(width)
            blocks = Blocks(block, min(block, 32), places_for(width), width, 1, 4)
            x, basis = torch.empty(0, dtype=dtype), torch.empty(0, dtype=wide)
            shared = {"d": 4096, **token_kernels.constants(blocks, x, basis)}
            title = f"x {NAMES[dtype]}, A {NAMES[wide]}, n r = {width}"
            for write in (True, False):
                settings = {"WRITE": write, "BLOCK_T": blocks.rows, **shared}
                yield _variant(token_kernels.token_kernel, f"{title}, WRITE={write}", of_x, settings)
            settings = {"STEPS": blocks.steps, "BLOCK_T": blocks.tile, **shared}
            yield _variant(token_kernels.gradient_kernel, title, of_x, settings)


def _of_the_basis() -> Iterator[Variant]:
    for dtype in (torch.float32, torch.float64):
        for side in (16, 32, 64):
            for has in ("Q", "P", "P Q BASIS"):
                flags = {f"HAS_{name}": name in has.split() for name in ("P", "Q", "BASIS")}
                parts = 4 if flags["HAS_BASIS"] else 1
                settings = {"PARTS": parts, **flags, "N": side, "BLOCK": basis_kernels.columns_for(side)}
                settings["num_warps"] = basis_kernels.warps_for(side)
                yield _variant(basis_kernels._mix_kernel, f"{NAMES[dtype]}, n = {side}, {has}", {"": dtype}, settings)


def _variant(kernel: Any, title: str, dtypes: dict[str, torch.dtype], settings: dict[str, Any]) -> Variant:
    names = [name for name in kernel.arg_names if name.endswith("_ptr")]
    pointers = {name: f"*{NAMES[dtypes.get(name, dtypes[''])]}" for name in names}
    return Variant(f"{kernel.__name__}, {title}", kernel, pointers, settings)


def compiled(variant: Variant, generation: int) -> Usage:
    """Compile for GPUs of compute capability ``generation`` / 10, and assemble.

    Raises: BackendError in a process that interprets the kernels; what Triton's compiler raises.
    """
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]

    if INTERPRETED:
        raise BackendError(
            "kernels",
            got="kernels that were made for Triton's interpreter",
            allowed="a process in which they were made for a GPU",
            remedy="unset TRITON_INTERPRET, and load torch-triton in another process",
        )
    options = {name: variant.settings[name] for name in ("num_warps", "num_stages") if name in variant.settings}
    constants = {name: value for name, value in variant.settings.items() if name not in options}
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in constants else variant.pointers.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.pointers}
    source = triton.compiler.ASTSource(variant.kernel, signature, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)
    return Usage(built.metadata.shared, *_registers_and_stack(built.asm["cubin"]))


def _registers_and_stack(binary: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.search(said)
    if found is None:
        raise BackendError(
            "cuobjdump -res-usage",
            got=said.strip()[-300:] or "nothing",
            allowed="a line with REG and STACK",
            remedy="install a Triton whose wheel carries cuobjdump, such as that of constraints.txt",
        )
    return int(found[1]), int(found[2])
