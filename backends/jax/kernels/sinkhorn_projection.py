"""Sinkhorn projection in Pallas: all matrices of a stack in one launch forward and in one launch backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, cast

import jax
from jax import Array

from backends.jax.autodiff import plain_projection, plain_projection_vjp
from backends.jax.kernels.launch import call, interpreted, pl, power_of_two
from backends.jax.kernels.projection_kernels import Task, backward_kernel, forward_kernel
from backends.jax.opaque import opaque_projection
from reference.errors import ConfigError

MOST_STREAMS = 64
ENTRIES, INTERPRETED_ENTRIES = 128, 2**16  # of one program, as long as that is more than one matrix


def sinkhorn_projection(logits: Array, iterations: int) -> Array:
    """The function of :func:`backends.jax.sinkhorn_projection.sinkhorn_projection`, n <= 64, of checked arguments.

    logits (..., n, n), float32 or float64. The backward pass takes up to ``2K - 2`` times the memory of the logits,
    padded to powers of two, while it runs, and keeps nothing but the logits from the forward pass. On a GPU no figure
    has been taken yet: it compiles for one, and its results were tested in Pallas' interpreter.

    Raises: ConfigError for n > 64, DeviceUnavailableError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3.
    """
    if logits.shape[-1] > MOST_STREAMS:
        raise ConfigError(
            "streams",
            got=logits.shape[-1],
            allowed=f"at most {MOST_STREAMS} in the Pallas kernel",
            remedy="use kernels='jax', which has no limit",
        )
    projected: Array = _projection(logits, iterations, interpreted(mix_logits=logits))
    return projected


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _projection_rule(logits: Array, iterations: int, interpret: bool) -> Array:
    return _forward(iterations, interpret)(logits)


def _keep_logits(logits: Array, iterations: int, interpret: bool) -> tuple[Array, Array]:
    return _forward(iterations, interpret)(logits), logits


def _gradient(iterations: int, interpret: bool, logits: Array, grad_mixing: Array) -> tuple[Array]:
    return (_backward(iterations, interpret)(logits, grad_mixing),)


_projection_rule.defvjp(_keep_logits, _gradient)
_projection = jax.jit(_projection_rule, static_argnums=(1, 2))


@cache
def _forward(iterations: int, interpret: bool) -> Callable[[Array], Array]:
    def forward(logits: Array) -> Array:
        blocks = _Blocks.of(logits, interpret)
        return blocks.run(forward_kernel, iterations, logits)

    return opaque_projection(forward, partial(plain_projection, iterations=iterations))


@cache
def _backward(iterations: int, interpret: bool) -> Callable[[Array, Array], Array]:
    def backward(logits: Array, grad_mixing: Array) -> Array:
        blocks = _Blocks.of(logits, interpret)
        scratch = (max(1, 2 * iterations - 2), blocks.block, blocks.side, blocks.side)
        return blocks.run(backward_kernel, iterations, logits, grad_mixing, scratch=scratch)

    return opaque_projection(backward, partial(plain_projection_vjp, iterations=iterations))


class _Blocks(NamedTuple):
    """How a batch of matrices is dealt out: ``block`` matrices to a program, padded from n to ``side``."""

    batch: int
    n: int
    block: int
    side: int
    interpret: bool

    @classmethod
    def of(cls, logits: Array, interpret: bool) -> _Blocks:
        n = logits.shape[-1]
        batch, side = logits.size // n**2, power_of_two(n)
        entries = INTERPRETED_ENTRIES if interpret else ENTRIES
        return cls(batch, n, max(1, min(power_of_two(batch), entries // side**2)), side, interpret)

    def run(
        self, kernel: Callable[..., None], iterations: int, *arrays: Array, scratch: tuple[int, ...] | None = None
    ) -> Array:
        """The kernel's first output, in the shape of the arrays."""
        logits = arrays[0]
        if not self.batch:
            return logits
        matrices: tuple[int, ...] = (self.batch, self.n, self.n)
        programs = pl.cdiv(self.batch, self.block)
        spec = pl.BlockSpec((self.block, self.side, self.side), lambda i: (i, 0, 0))
        outputs = [(matrices, spec)]
        if scratch is not None:
            outputs.append(((programs, *scratch), pl.BlockSpec((None, *scratch), lambda i: (i, 0, 0, 0, 0))))
        result, *_ = call(
            partial(kernel, task=Task(self.batch, self.n, iterations, self.interpret)),
            grid=(programs,),
            inputs=[(array.reshape(matrices), spec) for array in arrays],
            outputs=[(jax.ShapeDtypeStruct(shape, logits.dtype), spec) for shape, spec in outputs],
            interpret=self.interpret,
            warps=min(8, max(1, self.block * self.side**2 // 256)),
        )
        return cast(Array, result).reshape(logits.shape)
