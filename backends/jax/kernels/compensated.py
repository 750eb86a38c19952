"""Sums and quotients that keep their last digits inside a kernel, in float32 alone.

No step relies on a product being rounded before it is added to something, so fused multiply-adds change nothing.
"""

import jax.numpy as jnp
from jax import Array, lax

#: of the grid: 64 of its numbers in [0, 1] add up without rounding
_STEPS = 2.0**17


def compensated_sum(values: Array, axis: int) -> tuple[Array, Array]:
    """The sum over ``axis``, which stays, as a float and the rest that it leaves out; values in [0, 1], at most 64.

    Two plain sums, of the values cut off to a grid, which is exact, and of what is left of them, which is small: so
    the order in which a device adds does not matter. Cut off by way of integers: XLA takes ``(x + c) - c`` for x.
    """
    coarse = (values * _STEPS).astype(jnp.int32).astype(values.dtype) / _STEPS
    high = coarse.sum(axis, keepdims=True)
    low = (values - coarse).sum(axis, keepdims=True)
    total = high + low
    return total, low - (total - high)


def quotient(numerator: Array, denominator: Array) -> Array:
    """``numerator / denominator`` to half a unit of the last place; Triton's own float32 division is off by two."""
    first = numerator / denominator
    return refined(first, numerator, denominator) if first.dtype == jnp.float32 else first


def refined(first: Array, numerator: Array, denominator: Array) -> Array:
    """A quotient that is a few units off, set right by its remainder.

    The remainder is exact: both factors are cut in halves of 12 digits, whose products have 24.
    """
    left, right = _upper_digits(first), _upper_digits(denominator)
    left_rest, right_rest = first - left, denominator - right
    remainder = (numerator - left * right) - left * right_rest - left_rest * right - left_rest * right_rest
    return first + remainder / denominator


def _upper_digits(values: Array) -> Array:
    bits = lax.bitcast_convert_type(values, jnp.int32) & ~0xFFF
    return lax.bitcast_convert_type(bits, jnp.float32)
