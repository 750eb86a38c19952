"""Which dtypes the functions take: floats of 16 bits or more. Clause: MIX-10."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import DtypeError


def as_float64(field: str, values: ArrayLike) -> NDArray[np.float64]:
    """``values`` in float64; plain numbers, and lists of them, have no dtype and are taken as real numbers.

    Raises: DtypeError for an array of integers, booleans, complex numbers or floats of 8 bits, and for what is no
    number. Clause: MIX-10.
    """
    array = np.asarray(values)
    dtype = array.dtype
    is_float = (dtype.kind == "f" and dtype.itemsize >= 2) or dtype.name == "bfloat16"
    is_list = not hasattr(values, "dtype") and dtype.kind in "iu"
    if not is_float and not is_list:
        raise refused_dtype(field, dtype.name)
    return array.astype(np.float64, copy=False)


def refused_dtype(field: str, got: str, remedy: str = "convert it to float32") -> DtypeError:
    """The same words in every backend."""
    return DtypeError(
        field,
        got=f"dtype {got}",
        allowed="a float of 16 bits or more: float16, bfloat16, float32, float64",
        remedy=remedy,
    )
