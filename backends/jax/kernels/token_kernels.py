"""The Pallas kernels that see tokens: streams, write-back, and the gradients of both.

A row of x is d places, taken ``places`` at a time. Parameters come padded with zeros, (W, D): n r to a power of two,
d to whole blocks. Arithmetic is in the dtype of the parameters, products in full float32 (MIX-10). A block of x may
hang over its edges, so x is read and written under a mask.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from backends.jax.kernels.launch import pl, plgpu


class Task(NamedTuple):
    """What a program knows besides its arrays: sizes of x, and the tokens and places that it takes at a time."""

    tokens: int
    d: int
    block: int
    places: int


def forward_kernel(x_ref: Any, basis_ref: Any, mixed_ref: Any, y_ref: Any, *, task: Task) -> None:
    """``y = x + (x A^T) C`` for a block of whole rows. The second pass over them finds them in the L2 cache."""
    tile = pl.program_id(0)  # out of the loops, where the interpreter does not know it
    streams = _streams(x_ref, basis_ref, tile, task)

    def write(k: Array, _: None) -> None:
        at, inside = _span(k, tile, task)
        x = plgpu.load(x_ref.at[:, at], mask=inside, other=0).astype(basis_ref.dtype)
        y = x + _product(streams, mixed_ref[:, at], (1, 0))
        plgpu.store(y_ref.at[:, at], y.astype(y_ref.dtype), mask=inside)

    lax.fori_loop(0, basis_ref.shape[1] // task.places, write, None)


def streams_kernel(x_ref: Any, basis_ref: Any, streams_ref: Any, *, task: Task) -> None:
    """``x A^T`` for a block of whole rows; zeros for rows beyond the tokens."""
    streams_ref[...] = _streams(x_ref, basis_ref, pl.program_id(0), task)


def gradient_kernel(
    x_ref: Any, upstream_ref: Any, streams_ref: Any, read_back_ref: Any, mixed_ref: Any, grad_ref: Any, parts_ref: Any,
    *, task: Task,
) -> None:  # fmt: skip
    """``x' = y' + w E``, and the sums ``z y'^T``, ``w x^T`` over the tokens of this program, for some places of d.

    z is ``streams_ref`` and w ``read_back_ref``, (tokens, W); the sums go to ``parts_ref`` (2, W, places). No atomics.
    """
    dtype, tiles = mixed_ref.dtype, streams_ref.shape[0] // task.block
    first, chunk, mixed = pl.program_id(0) * tiles, pl.program_id(1), mixed_ref[...]

    def step(k: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        rows = pl.ds(k * task.block, task.block)
        _, inside = _span(chunk, first + k, task)
        streams, read_back = streams_ref[rows, :], read_back_ref[rows, :]
        x = plgpu.load(x_ref.at[rows, :], mask=inside, other=0).astype(dtype)
        upstream = plgpu.load(upstream_ref.at[rows, :], mask=inside, other=0).astype(dtype)
        grad = upstream + _product(read_back, mixed, (1, 0))
        plgpu.store(grad_ref.at[rows, :], grad.astype(grad_ref.dtype), mask=inside)
        return sums[0] + _product(streams, upstream, (0, 0)), sums[1] + _product(read_back, x, (0, 0))

    zeros = jnp.zeros(mixed.shape, dtype)
    parts_ref[0, :, :], parts_ref[1, :, :] = lax.fori_loop(0, tiles, step, (zeros, zeros))


def _streams(x_ref: Any, basis_ref: Any, tile: Array, task: Task) -> Array:
    def read(k: Array, streams: Array) -> Array:
        at, inside = _span(k, tile, task)
        x = plgpu.load(x_ref.at[:, at], mask=inside, other=0).astype(basis_ref.dtype)
        return streams + _product(x, basis_ref[:, at], (1, 1))

    zeros = jnp.zeros((task.block, basis_ref.shape[0]), basis_ref.dtype)
    return lax.fori_loop(0, basis_ref.shape[1] // task.places, read, zeros)


def _span(chunk: Array, tile: Array, task: Task) -> tuple[Any, Array]:
    """The places of a chunk, as a slice, and which entries of a (block, places) tile of x there are."""
    token = tile * task.block + lax.broadcasted_iota(jnp.int32, (task.block, task.places), 0)
    place = chunk * task.places + lax.broadcasted_iota(jnp.int32, (task.block, task.places), 1)
    return pl.ds(chunk * task.places, task.places), (token < task.tokens) & (place < task.d)


def _product(left: Array, right: Array, over: tuple[int, int]) -> Array:
    return lax.dot_general(left, right, (((over[0],), (over[1],)), ((), ())), precision=lax.Precision.HIGHEST)
