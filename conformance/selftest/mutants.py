"""Wrong ports, each with one fault that a real port could have. The suite must catch every one.

``MUTANTS`` names, for each, the tests that must fail. Try ``--backend=conformance.selftest.mutants:transposed_mixing``.
Source: ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from backends.interface import Gradients
from conformance.selftest.port import COLUMN, ROW, Array, NumpyPort, total


class Mutant(NamedTuple):
    """A factory's name, and the tests (without file and parameters) that must all fail."""

    factory: str
    caught_by: tuple[str, ...]


class TransposedMixing(NumpyPort):
    """Contracts over the first index of M, forward and backward alike."""

    def oriented(self, mixing: Array) -> Array:
        return mixing.T


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


class OneIterationLess(NumpyPort):
    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        return super().sinkhorn(logits, max(1, iterations - 1))


class GatePerStream(NumpyPort):
    """Every gate is at most the one of the layer; all the same the adapter can expand."""

    def stream_gates(self, streams: int) -> Array:
        return np.linspace(1.0, 0.25, streams, dtype=self.parameter_dtype)[:, None]


class NoGradientThroughKappa(NumpyPort):
    def strength_vjp(self, gate_logit: Array, basis: Array, grad_strength: Any) -> tuple[Any, Array]:
        return super().strength_vjp(gate_logit, basis, grad_strength)[0], np.zeros_like(basis)


class ZeroGradient(NumpyPort):
    """One input's gradient is lost."""

    def __init__(self, lost: str) -> None:
        super().__init__()
        self.lost = lost

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        return gradients._replace(**{self.lost: np.zeros_like(getattr(gradients, self.lost))})


class DetachedMixing(NumpyPort):
    """M is a constant in the backward pass: nothing reaches the logits, of the adapter or of the projection."""

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        return np.zeros_like(plain)


class DetachedCorrection(NumpyPort):
    """rho and max rho are constants in the backward pass."""

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        return np.asarray(grad_mixing / total(plain, ROW).max(axis=COLUMN, keepdims=True))


class LastArgmax(NumpyPort):
    def tie_break(self, row_sums: Array) -> Array:
        return row_sums.shape[-2] - 1 - row_sums[..., ::-1, :].argmax(axis=COLUMN, keepdims=True)


class RowsLast(NumpyPort):
    """Columns, then rows: the steps on the transposed matrix."""

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return np.swapaxes(super().sinkhorn_projection(np.swapaxes(mix_logits, -1, -2), iterations), -1, -2)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits, upstream = (np.swapaxes(array, -1, -2) for array in (mix_logits, cotangent))
        return np.swapaxes(super().sinkhorn_projection_vjp(logits, upstream, iterations), -1, -2)


class FiniteForNonFinite(NumpyPort):
    def checked_logits(self, mix_logits: Array) -> Array:
        return super().checked_logits(np.nan_to_num(mix_logits, posinf=1e30, neginf=-1e30))


class HalfPrecisionStreams(NumpyPort):
    """Arithmetic in the dtype of x."""

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        rows = np.asarray(basis, x.dtype)
        mixing = self.sinkhorn_projection(mix_logits, iterations).astype(x.dtype)
        streams = np.einsum("...d,nrd->...nr", x, rows)
        alpha = x.dtype.type(self.strength(gate_logit, np.asarray(basis, self.parameter_dtype)))
        return np.asarray(x + alpha * np.einsum("...nr,nrd->...d", mixing @ streams - streams, rows))


class ModifiesItsInput(NumpyPort):
    """Shifts the caller's logits in place."""

    def checked_logits(self, mix_logits: Array) -> Array:
        logits = super().checked_logits(mix_logits)
        if logits.size:
            logits -= logits.max()
        return logits


PORTS: dict[str, Any] = {
    "transposed_mixing": TransposedMixing,
    "plain_sinkhorn": PlainSinkhorn,
    "textbook_rounding": TextbookRounding,
    "one_iteration_less": OneIterationLess,
    "gate_per_stream": GatePerStream,
    "no_gradient_through_kappa": NoGradientThroughKappa,
    "zero_gradient_of_x": lambda: ZeroGradient("x"),
    "zero_gradient_of_mix_logits": lambda: ZeroGradient("mix_logits"),
    "zero_gradient_of_gate_logit": lambda: ZeroGradient("gate_logit"),
    "zero_gradient_of_basis": lambda: ZeroGradient("basis"),
    "detached_mixing": DetachedMixing,
    "detached_correction": DetachedCorrection,
    "last_argmax": LastArgmax,
    "rows_last": RowsLast,
    "finite_for_non_finite": FiniteForNonFinite,
    "half_precision_streams": HalfPrecisionStreams,
    "modifies_its_input": ModifiesItsInput,
}
_GRADIENTS = ("test_adapter_gradient_agrees_with_the_reference", "test_every_input_gets_a_gradient")
MUTANTS = (
    Mutant("transposed_mixing", ("test_contracts_over_the_second_index", "test_a_cycle_moves_stream_j_to_stream_i")),
    Mutant("plain_sinkhorn", ("test_doubly_stochastic_at_every_magnitude", "test_spectral_norm_is_one")),
    Mutant("textbook_rounding", ("test_projection_gradient_agrees_with_the_reference",)),
    Mutant("one_iteration_less", ("test_rows_then_columns_exactly_k_times",)),
    Mutant("gate_per_stream", ("test_non_expansive_at_every_magnitude", "test_conserves_the_sum_of_the_streams")),
    Mutant(
        "no_gradient_through_kappa",
        ("test_adapter_gradient_agrees_with_the_reference", "test_gradient_of_the_basis_has_no_part_along_the_basis"),
    ),
    *(Mutant(f"zero_gradient_of_{name}", _GRADIENTS) for name in Gradients._fields),
    Mutant("detached_mixing", (*_GRADIENTS, "test_projection_gradient_agrees_with_the_reference")),
    Mutant("detached_correction", ("test_projection_gradient_agrees_with_the_reference",)),
    Mutant("last_argmax", ("test_largest_row_sum_takes_the_first_argmax_of_a_tie",)),
    Mutant("rows_last", ("test_rows_then_columns_exactly_k_times",)),
    Mutant("finite_for_non_finite", ("test_non_finite_logits_never_give_finite_values",)),
    Mutant("half_precision_streams", ("test_float16_in_and_out_with_float32_inside",)),
    Mutant("modifies_its_input", ("test_inputs_are_not_modified_and_the_same_inputs_give_the_same_bits",)),
)


def __getattr__(name: str) -> Any:
    """The factory of a mutant, by its name."""
    if name not in PORTS:
        raise AttributeError(f"no mutant named {name}; there are {', '.join(PORTS)}")
    return PORTS[name]
