"""Faults of the Sinkhorn projection: other steps, other numbers of steps, another correction."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from conformance.selftest.mutants.around import PROJECT, PULL_BACK, Around, Given, Returns, argument
from conformance.selftest.mutants.base import ORTHOGONAL, STATE_FILE, Mutant
from conformance.selftest.port import COLUMN, ROW, Array, NumpyPort, total


class PlainSinkhorn(NumpyPort):
    """No Birkhoff correction."""

    def correction(self, plain: Array) -> Array:
        return plain

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        return grad_mixing


class TextbookRounding(NumpyPort):
    """Rows, then columns, scaled down; then ``err_r err_c^T / ||err_r||_1``: exact, but its gradient is noise."""

    def correction(self, plain: Array) -> Array:
        rows_scaled = plain * np.minimum(1, 1 / total(plain, ROW))
        scaled = rows_scaled * np.minimum(1, 1 / total(rows_scaled, COLUMN))
        row_error, column_error, size = self._errors(scaled)
        return np.asarray(scaled + row_error * column_error / size)

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        row_sums = total(plain, ROW)
        rows_scaled = plain * np.minimum(1, 1 / row_sums)
        column_sums = total(rows_scaled, COLUMN)
        row_error, column_error, size = self._errors(rows_scaled * np.minimum(1, 1 / column_sums))
        along_rows, along_columns = total(grad_mixing * column_error, ROW), total(grad_mixing * row_error, COLUMN)
        grad_row_error = along_rows / size - total(along_rows * row_error, COLUMN) / size**2
        grad = grad_mixing - grad_row_error - along_columns / size
        grad = grad * np.minimum(1, 1 / column_sums) - (column_sums > 1) / column_sums**2 * total(
            grad * rows_scaled, COLUMN
        )
        return np.asarray(grad * np.minimum(1, 1 / row_sums) - (row_sums > 1) / row_sums**2 * total(grad * plain, ROW))

    def _errors(self, scaled: Array) -> tuple[Array, Array, Array]:
        row_error, column_error = 1 - total(scaled, ROW), 1 - total(scaled, COLUMN)
        return row_error, column_error, np.maximum(total(np.abs(row_error), COLUMN), np.finfo(np.float32).tiny)


class NoDivisionByTheLargest(NumpyPort):
    """Rows are filled up to 1, or drained where they exceed it: sums of 1, and negative entries."""

    def correction(self, plain: Array) -> Array:
        return np.asarray(plain + (1 - total(plain, ROW)) / plain.shape[-1])


class NegativeEntriesClipped(NoDivisionByTheLargest):
    """And the negative ones cut off at 0: the sums are wrong again."""

    def correction(self, plain: Array) -> Array:
        return np.maximum(super().correction(plain), 0)


class LargestOfTheBatch(NumpyPort):
    """m is the largest row sum of all matrices: doubly stochastic, and dependent on the other matrices."""

    def correction(self, plain: Array) -> Array:
        row_sums = total(plain, ROW)
        largest = row_sums.max(initial=0)
        return np.asarray(plain / largest + (1 - row_sums / largest) / plain.shape[-1])


class OtherIterations(NumpyPort):
    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        return super().sinkhorn(logits, max(1, iterations + self.more))


class StopsWhenConverged(NumpyPort):
    """As soon as all row sums are within 1e-4 of 1, as library solvers do."""

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        for made in range(1, iterations):
            found = super().sinkhorn(logits, made)
            if np.abs(total(found[1], ROW) - 1).max(initial=0) < 1e-4:
                return found
        return super().sinkhorn(logits, iterations)


class EpsilonInTheNormalisation(NumpyPort):
    """``x / (sum + 1e-6)`` on probabilities: a row far below the maximum is never normalised."""

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        weights = np.exp(logits - logits.max(axis=(ROW, COLUMN), keepdims=True))
        iterates = []
        for axis in [ROW, COLUMN] * iterations:
            weights = weights / (total(weights, axis) + self.parameter_dtype.type(1e-6))
            iterates.append(np.log(np.maximum(weights, np.finfo(weights.dtype).tiny)))
        return iterates[:-1], weights


class Temperature(NumpyPort):
    """exp(S / t) instead of exp(S)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = np.float32(temperature)

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        return super().sinkhorn(logits / self.temperature, iterations)

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        return super().sinkhorn_vjp(log_iterates, plain, grad_plain) / self.temperature


class NoMaximumShift(NumpyPort):
    """exp of the entries as they are: it underflows in a whole row, whose logarithm is then -inf."""

    def log_normalised(self, log_matrix: Array, axis: int) -> Array:
        with np.errstate(all="ignore"):
            return log_matrix - np.log(total(np.exp(log_matrix), axis))


class MaximumAddedToTheLogarithm(NumpyPort):
    """``X - logsumexp(X)``: beside a large maximum the logarithm of the sum loses its decimals."""

    def log_normalised(self, log_matrix: Array, axis: int) -> Array:
        largest = log_matrix.max(axis=axis, keepdims=True)
        return log_matrix - (largest + np.log(total(np.exp(log_matrix - largest), axis)))


class HalfPrecisionSums(NumpyPort):
    """Each sum of exponentials is accumulated in float16."""

    def log_normalised(self, log_matrix: Array, axis: int) -> Array:
        shifted = log_matrix - log_matrix.max(axis=axis, keepdims=True)
        sums = np.exp(shifted).sum(axis=axis, keepdims=True, dtype=np.float16)
        return shifted - np.log(sums.astype(self.parameter_dtype))


class Float32AtManyStreams(NumpyPort):
    """The last softmax in float32 whatever n is."""

    def last_softmax(self, log_matrix: Array) -> Array:
        weights = np.exp(log_matrix - log_matrix.max(axis=COLUMN, keepdims=True))
        return weights / total(weights, COLUMN)


class RowsLast(Around):
    """Columns, then rows: the steps on the transposed matrix."""

    def call(self, function: str, *arguments: Any) -> Any:
        *arrays, iterations = arguments
        transposed = (np.swapaxes(array, -1, -2) for array in arrays)
        return np.swapaxes(super().call(function, *transposed, iterations), -1, -2)


class ZerosForNonFinite(Around):
    """Zeros are given back in place of NaN."""

    def call(self, function: str, *arguments: Any) -> Any:
        logits = arguments[0]
        return super().call(function, *arguments) if np.isfinite(logits).all() else np.zeros_like(logits)


def first_matrix_for_all(mixing: Array, *_: Any) -> Array:
    """Leading axes are lost: every matrix of a batch gets the first one's result."""
    if mixing.size:
        mixing[...] = mixing.reshape(-1, *mixing.shape[-2:])[0].copy()
    return mixing


def leading_axes_transposed(mixing: Array, *_: Any) -> Array:
    """The batch is flattened in the other order than it is unflattened."""
    return np.moveaxis(mixing, 0, -3).reshape(mixing.shape) if mixing.ndim > 3 else mixing


def replacing(**replaced: float) -> Callable[..., tuple[Any, ...]]:
    """Logits that are not finite become numbers: ``replaced`` says which of them, and by what."""
    return argument(0, partial(np.nan_to_num, **{"nan": np.nan, "posinf": np.inf, "neginf": -np.inf} | replaced))


_BOTH = PROJECT + PULL_BACK
_ELSEWHERE = (ORTHOGONAL, STATE_FILE)
_MODERATE = ("test_plain_sinkhorn_would_break_the_bound", STATE_FILE)
_STEPS = ("test_rows_then_columns_exactly_k_times",)
_NON_FINITE = ("test_non_finite_logits_never_give_finite_values",)
_AGREES = ("test_sinkhorn_projection::test_agrees_with_the_reference",)
_SUMS = ("test_doubly_stochastic_at_every_magnitude",)
_BATCH = ("test_each_matrix_of_a_batch_is_projected_on_its_own",)
#: the two overflow for the largest logits, where no test of the adapter can pass
_OVERFLOW = ("temperature_low", "no_maximum_shift")
MUTANTS = tuple(
    Mutant(name, factory, caught_by, _MODERATE if name in _OVERFLOW else _ELSEWHERE)
    for name, factory, caught_by in (
        ("plain_sinkhorn", PlainSinkhorn, (*_SUMS, "test_spectral_norm_is_one", "test_golden_projection")),
        ("textbook_rounding", TextbookRounding, ("test_projection_gradient_agrees_with_the_reference",)),
        ("no_division_by_the_largest", NoDivisionByTheLargest, (*_SUMS, *_AGREES)),
        ("negative_entries_clipped", NegativeEntriesClipped, _SUMS),
        ("largest_of_the_batch", LargestOfTheBatch, _BATCH),
        ("one_iteration_less", partial(OtherIterations, -1), _STEPS),
        ("one_iteration_more", partial(OtherIterations, +1), _STEPS),
        ("stops_when_converged", StopsWhenConverged, _AGREES),
        ("epsilon_in_the_normalisation", EpsilonInTheNormalisation, (*_SUMS, *_AGREES)),
        ("temperature_low", partial(Temperature, 0.05), (*_STEPS, *_AGREES)),
        ("temperature_high", partial(Temperature, 2.0), (*_STEPS, *_AGREES)),
        ("no_maximum_shift", NoMaximumShift, _SUMS),
        ("maximum_added_to_the_logarithm", MaximumAddedToTheLogarithm, _AGREES),
        ("half_precision_sums", HalfPrecisionSums, _AGREES),
        ("float32_at_many_streams", Float32AtManyStreams, ("test_sums_hold_where_roundings_line_up",)),
        ("rows_last", partial(RowsLast, _BOTH), _STEPS),
        ("first_matrix_for_all", partial(Returns, PROJECT, first_matrix_for_all), _BATCH),
        ("leading_axes_transposed", partial(Returns, PROJECT, leading_axes_transposed), _BATCH),
        ("nan_becomes_finite", partial(Given, _BOTH, replacing(nan=0.0)), _NON_FINITE),
        ("infinity_becomes_finite", partial(Given, _BOTH, replacing(posinf=1e30)), _NON_FINITE),
        ("minus_infinity_is_a_mask", partial(Given, _BOTH, replacing(neginf=-1e30)), _NON_FINITE),
        ("zeros_for_nan", partial(ZerosForNonFinite, _BOTH), _NON_FINITE),
    )
)
