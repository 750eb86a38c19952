"""What all kernels share: where they run, and how they are called.

The kernels are written for Pallas' lowering to Triton, in ``jax.experimental.pallas.triton``. JAX 0.11 has it and calls
it deprecated; a JAX without it is refused by name.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax import Array

from reference.errors import BackendError, DeviceUnavailableError

try:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu
except ImportError as error:
    raise BackendError(
        "kernels",
        got=f"jax {jax.__version__}, whose Pallas does not lower to Triton",
        allowed="a JAX with jax.experimental.pallas.triton, such as 0.10.2",
        remedy="use kernels='jax', the same functions in plain JAX",
    ) from error

__all__ = ["SHORTEST", "VARIABLE", "call", "interpreted", "interpreter", "pl", "plgpu", "power_of_two"]

#: set to 1, the kernels run in Pallas' interpreter, on any device: for tests
VARIABLE = "CRMA_PALLAS_INTERPRET"
_interpreting = ContextVar("interpreting", default=False)

#: a matrix product in Triton takes no side shorter than this
SHORTEST = 16


@contextmanager
def interpreter() -> Iterator[None]:
    """Kernels traced inside run in Pallas' interpreter, as with CRMA_PALLAS_INTERPRET=1."""
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


def interpreted(**arrays: Array) -> bool:
    """Whether to interpret the kernels on these arrays; inside ``jit`` the default device stands for theirs.

    Compiled kernels take part in ``jax.shard_map`` as it is, Pallas' interpreter only with ``check_vma=False``.

    Raises: DeviceUnavailableError for anything but a GPU, unless the interpreter was asked for. Clause: ERR-3.
    """
    if _interpreting.get() or os.environ.get(VARIABLE) == "1":
        return True
    for field, array in arrays.items():
        platform = _platform(array)
        if platform not in ("gpu", "cuda", "rocm"):
            raise DeviceUnavailableError(
                field,
                got=f"an array on {platform}",
                allowed="an array on a GPU, as the Pallas kernels need it",
                remedy=f"use kernels='jax', the same functions in plain JAX, or set {VARIABLE}=1 for a slow test",
            )
    return False


def _platform(array: Array) -> str:
    if not isinstance(array, jax.core.Tracer):
        return next(iter(array.devices())).platform
    default = getattr(jax.config, "jax_default_device", None)  # a device, the name of a platform, or None
    return str(getattr(default, "platform", default) or jax.default_backend())


def call(
    kernel: Callable[..., None],
    *,
    grid: tuple[int, ...],
    inputs: Sequence[tuple[Array, Any]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, Any]],
    interpret: bool,
    warps: int,
    stages: int = 1,
) -> Any:
    """Run ``kernel`` over ``grid``; each input and output comes with its ``pl.BlockSpec``."""
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    run = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(out_specs),
        out_shape=[_varying_as(arrays[0], shape) for shape in shapes],
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
    )
    return run(*arrays)


def _varying_as(array: Array, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """``shape`` with the mesh axes that ``array`` varies over inside ``shard_map``; the attribute has had two names."""
    kind = jax.typeof(array)
    name = "vma" if hasattr(kind, "vma") else "manual_axis_type"
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, **{name: getattr(kind, name)})


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is not less than ``size`` and ``least``."""
    return 1 << (max(size, least, 1) - 1).bit_length()
