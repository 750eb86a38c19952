"""Sums and maxima over the rows or columns of small matrices that lie (n, n, batch).

Written as slices that are combined pair by pair, which XLA fuses with what comes before into one loop over the
batch. Its own reduction over an axis that is not the last one takes up to fifteen times as long on a CPU (n = 16).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

FIRST, SECOND = 0, 1  # the axes of a matrix: a row step sums over the second index
UNROLLED = 8  # slices; of more, whole halves are combined first, or a program of n = 64 takes seconds to compile
T = TypeVar("T", Array, tuple[Array, Array])


def sum_over(values: Array, axis: int) -> Array:
    """The sum over ``axis``, which stays, with length 1."""
    return reduce_over(lax.add, values, axis)


def max_over(values: Array, axis: int) -> Array:
    """The maximum over ``axis``, which stays, with length 1; NaN if there is one."""
    return reduce_over(jnp.maximum, values, axis)


def reduce_over(combine: Callable[[T, T], T], values: T, axis: int) -> T:
    """All slices of ``values``, an array or a pair of arrays, combined along ``axis``, which stays, with length 1."""
    length = jax.tree.leaves(values)[0].shape[axis]
    while length > UNROLLED:
        half = length // 2
        combined = combine(_part(values, 0, half, axis), _part(values, half, 2 * half, axis))
        rest = _part(values, 2 * half, length, axis)
        values = jax.tree.map(lambda left, right: lax.concatenate([left, right], axis), combined, rest)
        length -= half
    parts = [_part(values, k, k + 1, axis) for k in range(length)]
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [combine(left, right) for left, right in zip(parts[::2], parts[1::2], strict=False)] + odd
    return parts[0]


def _part(values: T, begin: int, end: int, axis: int) -> T:
    return jax.tree.map(lambda array: lax.slice_in_dim(array, begin, end, axis=axis), values)
