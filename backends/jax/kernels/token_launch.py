"""How the kernels over tokens are dealt out: blocks, padding and the sums in parts."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from backends.jax.kernels.launch import SHORTEST, call, pl, power_of_two
from backends.jax.kernels.token_kernels import Task, forward_kernel, gradient_kernel, streams_kernel

#: for so many programs at most are the sums over tokens split up; two for each multiprocessor of a large GPU
PROGRAMS = 264


class Blocks(NamedTuple):
    """Sizes, from shapes alone: the same call sums in the same order.

    ``block`` tokens and ``places`` of x at a time; ``width`` is n r padded, ``length`` d; sums over tokens are made in
    ``splits`` parts of ``steps`` blocks each.
    """

    block: int
    places: int
    width: int
    length: int
    splits: int
    steps: int

    @property
    def tokens(self) -> int:
        """With those that fill up the last part."""
        return self.splits * self.steps * self.block


def blocks_for(tokens: int, d: int, width: int, interpret: bool) -> Blocks:
    """On a GPU, what the Triton kernels of the PyTorch backend take, whose shared memory suffices on every GPU."""
    padded = power_of_two(width, SHORTEST)
    block, places = (256, 128) if interpret else (32, 64) if padded == SHORTEST else (16, 32 if padded <= 128 else 16)
    block, places = min(block, power_of_two(tokens, SHORTEST)), min(places, power_of_two(d, SHORTEST))
    chunks, tiles = pl.cdiv(d, places), pl.cdiv(tokens, block)
    steps = pl.cdiv(tiles, 4 if interpret else max(1, PROGRAMS // chunks))
    return Blocks(block, places, padded, chunks * places, pl.cdiv(tiles, steps), steps)


def write_back(x: Array, directions: Array, write_out: Array, interpret: bool) -> Array:
    """``x + (x A^T) C``; x (..., d), A and C (n, r, d)."""
    tokens, blocks = _tokens(x, directions, interpret)
    if not tokens:
        return x
    rows = pl.BlockSpec((blocks.block, blocks.length), lambda i: (i, 0))
    (y,) = call(
        partial(forward_kernel, task=Task(tokens, x.shape[-1], blocks.block, blocks.places)),
        grid=(pl.cdiv(tokens, blocks.block),),
        inputs=[(_flat(x), rows), *(_whole(value, blocks) for value in (directions, write_out))],
        outputs=[(jax.ShapeDtypeStruct(_flat(x).shape, x.dtype), rows)],
        interpret=interpret,
        **_settings(blocks),
    )
    return cast(Array, y).reshape(x.shape)


def gradients(
    x: Array, upstream: Array, directions: Array, mixed: Array, interpret: bool
) -> tuple[Array, Array, Array]:
    """``y' + w E``, ``sum z y'^T`` and ``sum w x^T`` with ``z = A x``, ``w = A y'``; A, E and the sums (n, r, d)."""
    tokens, blocks = _tokens(x, directions, interpret)
    if not tokens:
        return upstream, jnp.zeros_like(directions), jnp.zeros_like(directions)
    rows, dtype = blocks.steps * blocks.block, directions.dtype
    task = Task(tokens, x.shape[-1], blocks.block, blocks.places)
    streams, read_back = (_streams(_flat(value), directions, blocks, task, interpret) for value in (x, upstream))
    tile = pl.BlockSpec((rows, blocks.places), lambda i, j: (i, j))
    narrow = pl.BlockSpec((rows, blocks.width), lambda i, j: (i, 0))
    padded, _ = _whole(mixed, blocks)
    parts = jax.ShapeDtypeStruct((2, blocks.splits, *padded.shape), dtype)
    grad, sums = call(
        partial(gradient_kernel, task=task),
        grid=(blocks.splits, blocks.length // blocks.places),
        inputs=[
            *((_flat(value), tile) for value in (x, upstream)),
            *((value, narrow) for value in (streams, read_back)),
            (padded, pl.BlockSpec((blocks.width, blocks.places), lambda i, j: (0, j))),
        ],
        outputs=[
            (jax.ShapeDtypeStruct(_flat(x).shape, x.dtype), tile),
            (parts, pl.BlockSpec((2, None, blocks.width, blocks.places), lambda i, j: (0, i, 0, j))),
        ],
        interpret=interpret,
        **_settings(blocks),
    )
    n, rank, d = directions.shape
    written, read = sums.sum(1)[:, : n * rank, :d].reshape(2, n, rank, d)
    return grad.reshape(x.shape), written, read


def _streams(x: Array, directions: Array, blocks: Blocks, task: Task, interpret: bool) -> Array:
    (streams,) = call(
        partial(streams_kernel, task=task),
        grid=(blocks.tokens // blocks.block,),
        inputs=[(x, pl.BlockSpec((blocks.block, blocks.length), lambda i: (i, 0))), _whole(directions, blocks)],
        outputs=[
            (
                jax.ShapeDtypeStruct((blocks.tokens, blocks.width), directions.dtype),
                pl.BlockSpec((blocks.block, blocks.width), lambda i: (i, 0)),
            )
        ],
        interpret=interpret,
        **_settings(blocks),
    )
    return cast(Array, streams)


def _tokens(x: Array, directions: Array, interpret: bool) -> tuple[int, Blocks]:
    n, rank, d = directions.shape
    return x.size // d, blocks_for(max(1, x.size // d), d, n * rank, interpret)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _whole(directions: Array, blocks: Blocks) -> tuple[Array, Any]:
    """(n, r, d) as a matrix padded with zeros, which every program sees whole."""
    flat = _flat(directions)
    shape = (blocks.width, blocks.length)
    padding = [(0, size - own) for size, own in zip(shape, flat.shape, strict=True)]
    return jnp.pad(flat, padding), pl.BlockSpec(shape, lambda i: (0, 0))


def _settings(blocks: Blocks) -> dict[str, int]:
    return {"warps": 8, "stages": 3 if blocks.width <= 256 else 1}
