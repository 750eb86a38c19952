"""The kernels lowered to Triton for CUDA, forwards and backwards, without a GPU at hand.

From jaxlib 0.10.3 on lowering also compiles, which takes JAX's plugin for a GPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from backends.jax.kernels.residual_mixing import _mix
from backends.jax.kernels.sinkhorn_projection import _projection


def lowered_projection(n: int, iterations: int) -> Any:
    """Of 5 matrices (n, n)."""
    logits = jax.ShapeDtypeStruct((5, n, n), jnp.float32)
    return lowered(lambda s: _projection(s, iterations, False), logits)


def lowered_mixing(tokens: int, d: int, n: int, rank: int, dtype: str) -> Any:
    """Of x (tokens, d) in ``dtype``, with float32 parameters."""
    shapes = (((tokens, d), dtype), ((n, n), "float32"), ((), "float32"), ((n, rank, d), "float32"))
    return lowered(lambda *inputs: _mix(*inputs, False), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def lowered(function: Callable[..., Any], *inputs: Any) -> Any:
    """Forward and backward pass of a function of arrays of these shapes, as ``jax.stages.Lowered``."""

    def both(*inputs: Any) -> Any:
        value, pull = jax.vjp(function, *inputs)
        return value, pull(value)

    return jax.jit(both).trace(*inputs).lower(lowering_platforms=("cuda",))
