"""Which arrays the functions take, and in which dtype they compute.

A program may set ``jax_numpy_dtype_promotion`` to "strict". JAX then mixes no dtypes by itself, so it is done by name.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from reference.dtypes import refused_dtype


def floats(**arguments: Any) -> tuple[Array, ...]:
    """The arguments as arrays, in this order; numbers, and lists of real numbers, take JAX's default float.

    Raises: DtypeError for an array of anything but floats of 16 bits or more, and for what is no array. Clause: MIX-10.
    """
    return tuple(_floats(field, value) for field, value in arguments.items())


def _floats(field: str, value: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:  # a tree, a text, None, or rows of different length
        raise refused_dtype(field, type(value).__name__) from error
    if not hasattr(value, "dtype") and jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(float)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        raise refused_dtype(field, array.dtype.name)
    return array


def common_dtype(*values: Any) -> Any:
    """The dtype that holds all of them, by JAX's standard rules."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def wide_dtype(*arrays: Array) -> Any:
    """In which to compute: float64 if one of the arrays is, else float32. Clause: MIX-10."""
    return common_dtype(jnp.float32, *(array.dtype for array in arrays))


def promoted(*arrays: Array) -> tuple[Array, ...]:
    """All in ``common_dtype`` of them."""
    dtype = common_dtype(*arrays)
    return tuple(array.astype(dtype) for array in arrays)


def widened(*arrays: Array) -> tuple[Array, ...]:
    """All in ``wide_dtype`` of them."""
    dtype = wide_dtype(*arrays)
    return tuple(array.astype(dtype) for array in arrays)
