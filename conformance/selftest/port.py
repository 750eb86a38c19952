"""A deliberately simple port in NumPy, float32 by default. The suite must accept it; mutants override its pieces.

Clauses: BACK-1. Source: ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.interface import Gradients
from reference.errors import DegenerateBasisError, NonFiniteError, ShapeError
from reference.sinkhorn_projection import checked_iterations

Array = NDArray[Any]
ROW, COLUMN = -1, -2


def total(array: Array, axis: int) -> Array:
    return np.asarray(array.sum(axis=axis, keepdims=True))


class NumpyPort:
    """Closed-form gradients, one method per step of the construction."""

    name = "numpy-port"
    device = "cpu"

    def __init__(self, dtype: str = "float32") -> None:
        self.parameter_dtype: np.dtype[Any] = np.dtype(dtype)
        self.version = f"selftest, NumPy {np.__version__}"

    # -- the interface ------------------------------------------------------------------------------------------------

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return self.correction(self.sinkhorn(self.checked_logits(mix_logits), checked_iterations(iterations))[1])

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        log_iterates, plain = self.sinkhorn(self.checked_logits(mix_logits), checked_iterations(iterations))
        upstream = np.asarray(cotangent, self.parameter_dtype)
        return self.sinkhorn_vjp(log_iterates, plain, self.correction_vjp(plain, upstream))

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        mixing = self.oriented(self.sinkhorn_projection(mix_logits, iterations))
        streams = np.einsum("...d,nrd->...nr", tokens, rows)
        moved = self.stream_gates(len(rows)) * (mixing @ streams - streams)
        result = tokens + self.strength(gate, rows) * np.einsum("...nr,nrd->...d", moved, rows)
        return np.asarray(result.astype(x.dtype))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        upstream = np.asarray(cotangent, self.parameter_dtype).reshape(-1, rows.shape[-1])
        shape, tokens = tokens.shape, tokens.reshape(-1, rows.shape[-1])
        mixing, alpha = self.oriented(self.sinkhorn_projection(mix_logits, iterations)), self.strength(gate, rows)
        gates = self.stream_gates(len(rows))
        streams = np.einsum("td,nrd->tnr", tokens, rows)
        grad_streams = gates * np.einsum("td,nrd->tnr", upstream, rows)
        difference = mixing @ streams - streams
        moved_back = mixing.T @ grad_streams - grad_streams
        grad_gate, grad_basis_of_strength = self.strength_vjp(gate, rows, (grad_streams * difference).sum())
        grad_mixing = self.oriented(alpha * np.einsum("tir,tjr->ij", grad_streams, streams))
        through_streams = np.einsum("tnr,td->nrd", gates * difference, upstream) + np.einsum(
            "tnr,td->nrd", moved_back, tokens
        )
        return Gradients(
            x=(upstream + alpha * np.einsum("tnr,nrd->td", moved_back, rows)).reshape(shape),
            mix_logits=self.sinkhorn_projection_vjp(mix_logits, grad_mixing, iterations),
            gate_logit=np.asarray(grad_gate),
            basis=alpha * through_streams + grad_basis_of_strength,
        )

    # -- the pieces ---------------------------------------------------------------------------------------------------

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        log_matrix = logits - logits.max(axis=(ROW, COLUMN), keepdims=True)
        log_iterates: list[Array] = []
        for axis in ([ROW, COLUMN] * iterations)[:-1]:
            shifted = log_matrix - log_matrix.max(axis=axis, keepdims=True)
            log_matrix = shifted - np.log(total(np.exp(shifted), axis))
            log_iterates.append(log_matrix)
        weights = np.exp(log_matrix - log_matrix.max(axis=COLUMN, keepdims=True))
        return log_iterates, weights / total(weights, COLUMN)

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
        n = plain.shape[-1]
        row_sums = total(plain, ROW)
        largest = row_sums.max(axis=COLUMN, keepdims=True)
        row_mean = total(grad_mixing, ROW) / n
        grad_largest = -total(total(grad_mixing * plain, ROW) - row_sums * row_mean, COLUMN) / largest**2
        is_largest = np.arange(n)[:, None] == self.tie_break(row_sums)
        return np.asarray((grad_mixing - row_mean) / largest + is_largest * grad_largest)

    def tie_break(self, row_sums: Array) -> Array:
        return np.asarray(row_sums.argmax(axis=COLUMN, keepdims=True))

    def oriented(self, mixing: Array) -> Array:
        return mixing

    def stream_gates(self, streams: int) -> Array:
        return np.ones((streams, 1), self.parameter_dtype)

    def strength(self, gate_logit: Array, basis: Array) -> Any:
        return self.sigmoid(gate_logit) / self.squared_norm_bound(basis)[0]

    def strength_vjp(self, gate_logit: Array, basis: Array, grad_strength: Any) -> tuple[Any, Array]:
        kappa, grad_of_kappa = self.squared_norm_bound(basis)
        gate = self.sigmoid(gate_logit)
        return grad_strength * gate * self.sigmoid(
            -gate_logit
        ) / kappa, -grad_strength * gate / kappa**2 * grad_of_kappa

    def sigmoid(self, value: Array) -> Any:
        decay = np.exp(-np.abs(value))
        return np.where(value >= 0, 1, decay) / (1 + decay)

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

    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        rows = np.asarray(basis, self.parameter_dtype)
        if rows.ndim != 3 or np.shape(logits) != (len(rows), len(rows)) or x.shape[-1:] != rows.shape[-1:]:
            raise ShapeError("basis", got=rows.shape, allowed="(n, r, d)", remedy="pass one layer's parameters")
        return np.asarray(x, self.parameter_dtype), np.asarray(gate_logit, self.parameter_dtype).reshape(()), rows


def make_port() -> NumpyPort:
    """Factory for ``--backend=conformance.selftest.port:make_port``."""
    return NumpyPort()
