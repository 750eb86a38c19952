"""Faults of the residual mixing and of its strength: orientation, basis, gate, kappa."""

from functools import partial
from typing import Any

import numpy as np

from conformance.selftest.mutants.around import FORWARD, VJP, Around
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


class TransposedMixing(NumpyPort):
    """Contracts over the first index of M, forward and backward alike."""

    def oriented(self, mixing: Array) -> Array:
        return mixing.T


class GatePerStream(NumpyPort):
    """Every gate is at most the one of the layer; all the same the adapter can expand."""

    def stream_gates(self, streams: int) -> Array:
        return np.linspace(1.0, 0.25, streams, dtype=self.parameter_dtype)[:, None]


class StreamsNotTakenOut(NumpyPort):
    """``y = x + alpha A^T z_mixed``: what the streams held before is not subtracted."""

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        y = super().adapter_forward(x, mix_logits, gate_logit, basis, iterations)
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        unmixed = self.strength(gate, rows) * self.write(self.read(tokens, rows), rows)
        return np.asarray((y + unmixed).astype(x.dtype))


class BasisOfAnotherLayout(Around):
    """The numbers of A taken as laid out in another order of its axes; its gradient goes the same way."""

    def __init__(self, *axes: int) -> None:
        super().__init__(FORWARD + VJP)
        self.axes = axes

    def call(self, function: str, *arguments: Any) -> Any:
        x, logits, gate, basis, *others = arguments
        if basis.ndim != 3:
            return super().call(function, *arguments)
        laid_out = basis.reshape([basis.shape[axis] for axis in self.axes])
        result = super().call(function, x, logits, gate, laid_out.transpose(np.argsort(self.axes)), *others)
        if function in FORWARD:
            return result
        return result._replace(basis=result.basis.transpose(self.axes).reshape(basis.shape))


class WriteOutReshaped(NumpyPort):
    """The write-out reshapes the flat basis (n r, d) to (d, n r) where it should transpose it."""

    def write(self, streams: Array, basis: Array) -> Array:
        columns = basis.reshape(basis.shape[-1], -1)
        return np.asarray(streams.reshape(*streams.shape[:-2], -1) @ columns.T)


class WriteOutByPseudoInverse(NumpyPort):
    """The write-out undoes the read-in; for an orthonormal basis that is its transpose."""

    def write(self, streams: Array, basis: Array) -> Array:
        inverse = np.linalg.pinv(basis.reshape(-1, basis.shape[-1]))
        return np.asarray(streams.reshape(*streams.shape[:-2], inverse.shape[1]) @ inverse.T)


class Kappa(NumpyPort):
    """Another bound than kappa, with its own right gradient: by default none, alpha = sigmoid(gamma)."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        bound, gradient = super().squared_norm_bound(basis)
        return np.ones_like(bound), np.zeros_like(gradient)


class TraceAsKappa(Kappa):
    """``trace(A A^T)``, a bound too, n r times too large for an orthonormal basis."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        NumpyPort.squared_norm_bound(self, basis)  # refuses zeros
        return (basis**2).sum(), 2 * basis


class LargestRowSumAsKappa(Kappa):
    """The largest absolute row sum of A A^T: a bound with a kink."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        NumpyPort.squared_norm_bound(self, basis)
        flat = basis.reshape(-1, basis.shape[-1])
        gram = flat @ flat.T
        row = int(np.abs(gram).sum(axis=1).argmax())
        signs = np.sign(gram[row])
        gradient = signs[:, None] * flat[row]
        gradient[row] += signs @ flat
        return np.abs(gram[row]).sum(), gradient.reshape(basis.shape)


class LargestEigenvalueAsKappa(Kappa):
    """``||A||_2^2`` itself: the bound holds, and is smaller than kappa."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        NumpyPort.squared_norm_bound(self, basis)
        left, values, right = np.linalg.svd(basis.reshape(-1, basis.shape[-1]), full_matrices=False)
        return values[0] ** 2, (2 * values[0] * np.outer(left[:, 0], right[0])).reshape(basis.shape)


class EpsilonInKappa(NumpyPort):
    """``sigmoid(gamma) / (kappa + 1e-6)``: A = 0 goes unnoticed, and the scale of A matters."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        epsilon = self.parameter_dtype.type(1e-6)
        if not np.any(basis):
            return epsilon, np.zeros_like(basis)
        bound, gradient = super().squared_norm_bound(basis)
        return bound + epsilon, gradient


class TanhGate(NumpyPort):
    def sigmoid(self, value: Array) -> Any:
        return (1 + np.tanh(value)) / 2

    def sigmoid_derivative(self, value: Array) -> Any:
        return (1 - np.tanh(value) ** 2) / 2


class HardSigmoid(NumpyPort):
    """``clip(gamma / 6 + 1 / 2, 0, 1)``."""

    def sigmoid(self, value: Array) -> Any:
        return np.clip(value / 6 + self.parameter_dtype.type(0.5), 0, 1)

    def sigmoid_derivative(self, value: Array) -> Any:
        return np.where(np.abs(value) < 3, self.parameter_dtype.type(1 / 6), 0)


class SigmoidOverflows(NumpyPort):
    """``exp(gamma) / (1 + exp(gamma))``: NaN from gamma = 89 on."""

    def sigmoid(self, value: Array) -> Any:
        with np.errstate(all="ignore"):
            grown = np.exp(value)
            return grown / (1 + grown)


_ELSEWHERE = (PROJECTION, STATE_FILE)
_OWN_PART = ("test_streams_read_their_own_part_of_the_basis",)
_GATE = ("test_change_is_proportional_to_the_sigmoid_of_the_gate_logit",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, _ELSEWHERE)
    for name, factory, caught_by in (
        (
            "transposed_mixing",
            TransposedMixing,
            ("test_contracts_over_the_second_index", "test_a_cycle_moves_stream_j_to_stream_i", "test_golden_adapter"),
        ),
        (
            "gate_per_stream",
            GatePerStream,
            ("test_non_expansive_at_every_magnitude", "test_conserves_the_sum_of_the_streams"),
        ),
        ("streams_not_taken_out", StreamsNotTakenOut, (ADAPTER, "test_identity_when_m_is_the_identity")),
        ("basis_with_ranks_before_streams", partial(BasisOfAnotherLayout, 1, 0, 2), _OWN_PART),
        ("basis_as_columns", partial(BasisOfAnotherLayout, 0, 2, 1), _OWN_PART),
        ("write_out_reshaped", WriteOutReshaped, (ADAPTER, "test_streams_read_their_own_part_of_the_basis")),
        ("write_out_by_pseudo_inverse", WriteOutByPseudoInverse, (ADAPTER,)),
        ("no_kappa", Kappa, ("test_independent_of_the_scale_of_the_basis", "test_non_expansive_at_every_magnitude")),
        ("trace_as_kappa", TraceAsKappa, (ADAPTER, "test_a_cycle_moves_stream_j_to_stream_i")),
        ("largest_row_sum_as_kappa", LargestRowSumAsKappa, (ADAPTER,)),
        ("largest_eigenvalue_as_kappa", LargestEigenvalueAsKappa, (ADAPTER, "test_a_cycle_moves_stream_j_to_stream_i")),
        (
            "epsilon_in_kappa",
            EpsilonInKappa,
            ("test_independent_of_the_scale_of_the_basis", "test_a_basis_of_zeros_gives_no_finite_value"),
        ),
        ("tanh_gate", TanhGate, _GATE),
        ("hard_sigmoid", HardSigmoid, _GATE),
        ("sigmoid_overflows", SigmoidOverflows, ("test_every_finite_gate_is_legal",)),
    )
)
