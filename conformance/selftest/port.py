"""A deliberately simple port in NumPy, float32 by default. The suite must accept it; mutants override its pieces.

Clauses: BACK-1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.interface import Gradients, Limited, Moment, State
from backends.reference_backend import ReferenceBackend
from backends.state_file import decode_state, encode_state
from reference import AdapterConfig
from reference.errors import DegenerateBasisError, NonFiniteError, ShapeError
from reference.sinkhorn_projection import checked_iterations

Array = NDArray[Any]
ROW, COLUMN = -1, -2
WIDE = 8  # streams beyond which float32 sums lose what SINK-5 allows; the last steps are then taken in float64


def total(array: Array, axis: int) -> Array:
    return np.asarray(array.sum(axis=axis, keepdims=True))


class NumpyPort:
    """Closed-form gradients, one method per step of the construction."""

    name = "numpy-port"
    device = "cpu"

    def __init__(self, dtype: str = "float32") -> None:
        self.parameter_dtype: np.dtype[Any] = np.dtype(dtype)
        self.version = f"selftest, NumPy {np.__version__}"
        self.x_dtypes = ("float32", "float16", "bfloat16", *(("float64",) if dtype == "float64" else ()))

    # -- the interface ------------------------------------------------------------------------------------------------

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        plain = self.sinkhorn(self.checked_logits(mix_logits), checked_iterations(iterations))[1]
        return self.correction(plain).astype(self.parameter_dtype)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        log_iterates, plain = self.sinkhorn(self.checked_logits(mix_logits), checked_iterations(iterations))
        upstream = self.checked_cotangent(cotangent, plain)
        gradient = self.sinkhorn_vjp(log_iterates, plain, self.correction_vjp(plain, upstream))
        return gradient.astype(self.parameter_dtype)

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        mixing = self.oriented(self.sinkhorn_projection(mix_logits, iterations))
        streams = self.read(tokens, rows)
        moved = self.stream_gates(len(rows)) * (mixing @ streams - streams)
        result = tokens + self.strength(gate, rows) * self.write(moved, rows)
        return np.asarray(result.astype(x.dtype))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        upstream = self.checked_cotangent(cotangent, tokens).reshape(-1, rows.shape[-1])
        flat = tokens.reshape(-1, rows.shape[-1])
        mixing, alpha = self.oriented(self.sinkhorn_projection(mix_logits, iterations)), self.strength(gate, rows)
        gates = self.stream_gates(len(rows))
        streams, grad_streams = self.read(flat, rows), gates * self.read(upstream, rows)
        difference = mixing @ streams - streams
        moved_back = mixing.T @ grad_streams - grad_streams
        grad_gate, grad_basis_of_strength = self.strength_vjp(gate, rows, (grad_streams * difference).sum())
        grad_mixing = self.oriented(alpha * np.einsum("tir,tjr->ij", grad_streams, streams))
        by_write, by_read = self.basis_terms(gates * difference, upstream, moved_back, flat)
        return Gradients(
            x=(upstream + alpha * self.write(moved_back, rows)).reshape(tokens.shape).astype(x.dtype),
            mix_logits=self.sinkhorn_projection_vjp(mix_logits, grad_mixing, iterations),
            gate_logit=np.asarray(grad_gate),
            basis=alpha * (by_write + by_read) + grad_basis_of_strength,
        )

    def load_state(self, data: bytes) -> State:
        content = decode_state(data)
        return State(content.mix_logits, content.gate_logits, content.bases, content.config.iterations)

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        _, n, r, d = bases.shape
        return encode_state(mix_logits, gate_logits, bases, AdapterConfig(d, n, r, iterations))

    def limit_displacement(self, *arguments: Any) -> Limited:
        return self.stored(ReferenceBackend().limit_displacement(*arguments))

    def stream_moment(self, x: Array, basis: Array) -> Moment:
        return ReferenceBackend().stream_moment(x, basis)

    def limit_data_displacement(self, *arguments: Any) -> Limited:
        return self.stored(ReferenceBackend().limit_data_displacement(*arguments))

    def stored(self, limited: Limited) -> Limited:
        """In the dtype of the parameters."""
        *state, fraction = limited
        return Limited._make([*(np.asarray(array, self.parameter_dtype) for array in state), fraction])

    # -- the pieces ---------------------------------------------------------------------------------------------------

    def read(self, tokens: Array, basis: Array) -> Array:
        return np.asarray(np.einsum("...d,nrd->...nr", tokens, basis))

    def write(self, streams: Array, basis: Array) -> Array:
        return np.asarray(np.einsum("...nr,nrd->...d", streams, basis))

    def basis_terms(self, moved: Array, upstream: Array, moved_back: Array, tokens: Array) -> tuple[Array, Array]:
        """The basis' gradient through the write-out and through the read-in, both before alpha."""
        return np.einsum("tnr,td->nrd", moved, upstream), np.einsum("tnr,td->nrd", moved_back, tokens)

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        """The log-matrix after each step but the last, and P."""
        log_matrix = logits - logits.max(axis=(ROW, COLUMN), keepdims=True)
        log_iterates: list[Array] = []
        for axis in ([ROW, COLUMN] * iterations)[:-1]:
            log_matrix = self.log_normalised(log_matrix, axis)
            log_iterates.append(log_matrix)
        return log_iterates, self.last_softmax(log_matrix)

    def log_normalised(self, log_matrix: Array, axis: int) -> Array:
        shifted = log_matrix - log_matrix.max(axis=axis, keepdims=True)
        return shifted - np.log(total(np.exp(shifted), axis))

    def last_softmax(self, log_matrix: Array) -> Array:
        """P; for many streams in float64, and with it the correction (note on SINK-5)."""
        if log_matrix.shape[-1] > WIDE:
            log_matrix = log_matrix.astype(np.float64)
        weights = np.exp(log_matrix - log_matrix.max(axis=COLUMN, keepdims=True))
        return weights / total(weights, COLUMN)

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        grad = plain * (grad_plain - total(plain * grad_plain, COLUMN))
        for step in reversed(range(len(log_iterates))):
            grad = grad - np.exp(log_iterates[step]) * total(grad, ROW if step % 2 == 0 else COLUMN)
        return grad

    def correction(self, plain: Array) -> Array:
        row_sums = total(plain, ROW)
        largest = row_sums.max(axis=COLUMN, keepdims=True)
        return np.asarray(plain / largest + (1 - row_sums / largest) / plain.shape[-1])

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        row_sums = total(plain, ROW)
        largest = row_sums.max(axis=COLUMN, keepdims=True)
        row_mean = total(grad_mixing, ROW) / plain.shape[-1]
        grad_largest = -total(total(grad_mixing * plain, ROW) - row_sums * row_mean, COLUMN) / largest**2
        return np.asarray((grad_mixing - row_mean) / largest + self.share_of_largest(row_sums) * grad_largest)

    def share_of_largest(self, row_sums: Array) -> Array:
        """The derivative of the largest row sum: all of it goes to the first argmax."""
        return np.asarray(np.arange(row_sums.shape[-2])[:, None] == row_sums.argmax(axis=COLUMN, keepdims=True))

    def oriented(self, mixing: Array) -> Array:
        return mixing

    def stream_gates(self, streams: int) -> Array:
        return np.ones((streams, 1), self.parameter_dtype)

    def strength(self, gate_logit: Array, basis: Array) -> Any:
        return self.sigmoid(gate_logit) / self.squared_norm_bound(basis)[0]

    def strength_vjp(self, gate_logit: Array, basis: Array, grad_strength: Any) -> tuple[Any, Array]:
        kappa, grad_of_kappa = self.squared_norm_bound(basis)
        gate = self.sigmoid(gate_logit)
        grad_gate = grad_strength * self.sigmoid_derivative(gate_logit) / kappa
        return grad_gate, -(grad_strength * gate / kappa) * (grad_of_kappa / kappa)  # kappa**2 may leave the range

    def sigmoid(self, value: Array) -> Any:
        decay = np.exp(-np.abs(value))
        return np.where(value >= 0, 1, decay) / (1 + decay)

    def sigmoid_derivative(self, value: Array) -> Any:
        return self.sigmoid(value) * self.sigmoid(-value)

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        """kappa and its gradient."""
        flat = basis.reshape(-1, basis.shape[-1])
        gram = flat @ flat.T
        trace = np.trace(gram)
        if not trace > 0:
            raise DegenerateBasisError("basis", got="zeros", allowed="not all zero", remedy="initialise it")
        unit = gram / trace
        squared = unit @ unit
        seventh = squared @ squared @ squared @ unit
        trace_of_eighth = np.trace(seventh @ unit)
        root = trace_of_eighth ** self.parameter_dtype.type(0.125)
        return trace * root, (2 * root / trace_of_eighth * (seventh @ flat)).reshape(basis.shape)

    # -- the checks ---------------------------------------------------------------------------------------------------

    def checked_logits(self, mix_logits: Array) -> Array:
        logits = np.asarray(mix_logits, self.parameter_dtype)
        if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2] or logits.shape[-1] == 0:
            raise ShapeError("mix_logits", got=logits.shape, allowed="(..., n, n)", remedy="pass square matrices")
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                "mix_logits", got="NaN or infinity", allowed="finite", remedy="look at the step before"
            )
        return logits

    def checked_cotangent(self, cotangent: Array, output: Array) -> Array:
        if np.shape(cotangent) != output.shape:
            raise ShapeError("cotangent", got=np.shape(cotangent), allowed=f"{output.shape}", remedy="pass dL/dy")
        return np.asarray(cotangent, self.parameter_dtype)

    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        rows = np.asarray(basis, self.parameter_dtype)
        if rows.ndim != 3 or np.shape(logits) != (len(rows), len(rows)) or x.shape[-1:] != rows.shape[-1:]:
            raise ShapeError("basis", got=rows.shape, allowed="(n, r, d)", remedy="pass one layer's parameters")
        return np.asarray(x, self.parameter_dtype), np.asarray(gate_logit, self.parameter_dtype).reshape(()), rows


def make_port() -> NumpyPort:
    """Factory for ``--backend=conformance.selftest.port:make_port``."""
    return NumpyPort()
