"""Summary of one figure over seeds, and the checks of vectors of such figures.

Source: ours, with the sample SD that the paper's Table 7 prints. Clause: CL-8.
"""

import statistics
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import NonFiniteError, ShapeError

Array = NDArray[np.float64]
LARGEST = 1e300  # so that no sum, difference or SD of some such numbers overflows


class SeedSummary(NamedTuple):
    """Of n values: mean, sample standard deviation (n - 1 below the sum; None for one value), smallest and largest."""

    mean: float
    sd: float | None
    min: float
    max: float
    n: int


def seed_summary(values: ArrayLike) -> SeedSummary:
    """Mean, sample SD and range of one figure over n seeds, in its own unit; summed exactly, so equal values have SD 0.

    One seed says nothing of the spread, so its ``sd`` is None: neither 0, which would claim that there is none, nor
    NaN, which no JSON file holds.

    Raises: ShapeError unless ``values`` is (n,) with n >= 1; NonFiniteError. Clause: CL-8.

    >>> summary = seed_summary([1.46, 1.97, 2.54])  # advantage in percent, the paper's Table 7
    >>> round(summary.mean, 2), round(summary.sd, 2)
    (1.99, 0.54)
    """
    numbers = checked_values(values, "values").tolist()
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    return SeedSummary(statistics.mean(numbers), sd, min(numbers), max(numbers), len(numbers))


def checked_values(values: ArrayLike, field: str) -> Array:
    """``values`` as float64 (n,), n >= 1, all finite and small enough for a sum; else ShapeError or NonFiniteError."""
    numbers = as_numbers(values, field)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ShapeError(field, got=numbers.shape, allowed="(n,) with n >= 1", remedy="one number per seed")
    if not (np.abs(numbers) < LARGEST).all():
        raise non_finite(field, f"numbers below {LARGEST:g} for every seed")
    return numbers


def as_numbers(values: ArrayLike, field: str) -> Array:
    """``values`` as float64, of any shape; ShapeError for what is no array of numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:  # ragged rows, words
        raise ShapeError(
            field, got=str(error), allowed="an array of numbers", remedy="rows of equal length, numbers only"
        ) from error


def non_finite(field: str, allowed: str) -> NonFiniteError:
    """The error for NaN or infinity in ``field``."""
    return NonFiniteError(
        field,
        got="NaN, infinity or a number out of range",
        allowed=f"finite {allowed}",
        remedy="finish the run, or look at the phase that diverged",
    )
