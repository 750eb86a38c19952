"""Faults that show only at sizes beyond those that somebody tried: blocks of a kernel, a fixed K, large squares."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


class OneBlockOfTokens(NumpyPort):
    """One program of the kernel handles 128 tokens, and only one is started: the others pass unmixed."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        beyond = slice(128, None)
        y.reshape(-1, y.shape[-1])[beyond] = x.reshape(-1, y.shape[-1])[beyond]
        return y


class LastBlockOfTokens(NumpyPort):
    """Every block of 128 tokens writes its sum where the one before wrote: the parameters get that of the last."""

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        whole = super().adapter_vjp(x, mix_logits, gate_logit, basis, cotangent, iterations)
        tokens = x.size // x.shape[-1]
        if tokens <= 128:
            return whole
        last = slice((tokens - 1) // 128 * 128, None)
        flat, upstream = x.reshape(-1, x.shape[-1])[last], cotangent.reshape(-1, x.shape[-1])[last]
        return super().adapter_vjp(flat, mix_logits, gate_logit, basis, upstream, iterations)._replace(x=whole.x)


class OneBlockOfHiddenSize(NumpyPort):
    """The read-in sums over the first 128 places of a token."""

    def read(self, tokens: Array, basis: Array) -> Array:
        return super().read(tokens[..., :128], basis[..., :128])


class OneBlockOfMatrices(NumpyPort):
    """The projection of a batch of more than 64 matrices leaves the others as they were allocated: zeros."""

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        projected = super().sinkhorn_projection(mix_logits, iterations)
        projected.reshape(-1, *projected.shape[-2:])[64:] = 0
        return projected


class NoMoreThan20Iterations(NumpyPort):
    """The loop is unrolled twenty times."""

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        return super().sinkhorn(logits, min(20, iterations))


class PowersOfKappaOverflow(NumpyPort):
    """``(trace (A A^T)^8)^(1/8)`` as it is written: out of range unless A is of order one."""

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        with np.errstate(all="ignore"):
            flat = basis.reshape(-1, basis.shape[-1])
            gram = flat @ flat.T
            squared = gram @ gram
            seventh = squared @ squared @ squared @ gram
            eighth = np.trace(seventh @ gram)
            kappa = eighth ** self.parameter_dtype.type(0.125)
            return kappa, (2 * kappa / eighth * (seventh @ flat)).reshape(basis.shape)


class SquaresTheTokens(NumpyPort):
    """Each token is divided by its norm and the result multiplied by it again; from 1.9e19 on, squares overflow."""

    def __init__(self, backward: bool) -> None:
        super().__init__()
        self.backward = backward

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        if self.backward:
            return super().adapter_forward(x, *parameters)
        tokens, norms = self._of_norm_one(x)
        return np.asarray((super().adapter_forward(tokens, *parameters) * norms).astype(x.dtype))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        inputs = (mix_logits, gate_logit, basis)
        gradients = super().adapter_vjp(x, *inputs, cotangent, iterations)
        if not self.backward:
            return gradients
        tokens, norms = self._of_norm_one(x)
        of_parameters = super().adapter_vjp(tokens, *inputs, self.checked_cotangent(cotangent, x) * norms, iterations)
        return of_parameters._replace(x=gradients.x)

    def _of_norm_one(self, x: Array) -> tuple[Array, Array]:
        tokens = np.asarray(x, self.parameter_dtype)
        with np.errstate(all="ignore"):
            norms = np.sqrt((tokens**2).sum(axis=-1, keepdims=True))
            norms = np.where(norms > 0, norms, self.parameter_dtype.type(1))
            return tokens / norms, norms


_ELSEWHERE = (PROJECTION, STATE_FILE)
_FORWARD = (PROJECTION, ADAPTER, STATE_FILE)
_FAR = ("test_linear_in_x_and_in_the_cotangent_at_any_magnitude",)
_TOKENS = ("test_design::test_adapter",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("one_block_of_tokens", OneBlockOfTokens, _TOKENS, _FORWARD),
        ("last_block_of_tokens", LastBlockOfTokens, ("test_adapter_gradient",), _FORWARD),
        ("one_block_of_hidden_size", OneBlockOfHiddenSize, ("test_golden_adapter",), _FORWARD),
        ("one_block_of_matrices", OneBlockOfMatrices, ("test_projection",), _FORWARD),
        ("no_more_than_20_iterations", NoMoreThan20Iterations, ("test_projection",), _FORWARD),
        ("powers_of_kappa_overflow", PowersOfKappaOverflow, (ADAPTER,), _ELSEWHERE),
        ("squares_the_tokens", partial(SquaresTheTokens, False), _FAR, _FORWARD),
        ("norms_the_tokens_in_the_gradient", partial(SquaresTheTokens, True), _FAR, _FORWARD),
    )
)
