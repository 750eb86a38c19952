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


def _reversed(array: Array) -> Array:
    """Every stride is negative, that of an axis of length 1 included, which NumPy calls contiguous all the same."""
    backwards = (slice(None, None, -1),) * array.ndim
    return np.array(array[backwards], order="C")[backwards]


MEMORY: dict[str, Callable[[Array], Array]] = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "reversed": _reversed,
    "stride 0": _first_axis_once,
    "read-only": lambda array: array,
    "unaligned": unaligned,
}
