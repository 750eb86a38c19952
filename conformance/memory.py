"""How an array may lie in memory: the same numbers, seen through other strides.

Clauses: BACK-3.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def laid_out(array: Array, memory: str) -> Array:
    """The same numbers in the same shape, in one of the ways of ``MEMORY``."""
    arranged = MEMORY[memory](np.array(array)) if array.ndim else array
    if memory == "read-only":
        arranged = np.array(arranged)
        arranged.flags.writeable = False
    return arranged


def unaligned(array: Array) -> Array:
    """From an odd address on, as in a buffer of a file or of a network."""
    moved: Array = np.ndarray(array.shape, array.dtype, np.empty(array.nbytes + 1, np.uint8), offset=1)
    moved[...] = array
    return moved


def _first_axis_once(array: Array) -> Array:
    """One copy of the first matrix or token, seen once for each place of the first axis, if all are equal."""
    equal = array.ndim > 1 and array.size > 0 and bool((array == array[:1]).all())
    return np.broadcast_to(array[:1], array.shape) if equal else array


MEMORY: dict[str, Callable[[Array], Array]] = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "stride 0": _first_axis_once,
    "read-only": lambda array: array,
    "unaligned": unaligned,
}
