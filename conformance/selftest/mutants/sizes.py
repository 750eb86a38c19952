"""Faults that show only at sizes beyond those that somebody tried: blocks of a kernel, a fixed K, large squares."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import FORWARD, PROJECT, VJP, Around, Returns
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


def one_block_of_tokens(y: Array, x: Array, *_: Any) -> Array:
    """One program of the kernel handles 128 tokens, and only one is started: the others pass unmixed."""
    beyond = slice(128, None)
    y.reshape(-1, y.shape[-1])[beyond] = x.reshape(-1, y.shape[-1])[beyond]
    return y


def last_block_of_tokens(whole: Gradients, x: Array, *given: Any) -> Gradients:
    """Every block of 128 tokens writes its sum where the one before wrote: the parameters get that of the last."""
    logits, gate, basis, cotangent, iterations = given
    tokens = x.size // x.shape[-1]
    if tokens <= 128:
        return whole
    last = slice((tokens - 1) // 128 * 128, None)
    flat, upstream = x.reshape(-1, x.shape[-1])[last], cotangent.reshape(-1, x.shape[-1])[last]
    return NumpyPort().adapter_vjp(flat, logits, gate, basis, upstream, iterations)._replace(x=whole.x)


def one_block_of_matrices(mixing: Array, *_: Any) -> Array:
    """The projection of a batch of more than 64 matrices leaves the others as they were allocated: zeros."""
    mixing.reshape(-1, *mixing.shape[-2:])[64:] = 0
    return mixing


class OneBlockOfHiddenSize(NumpyPort):
    """The read-in sums over the first 128 places of a token."""

    def read(self, tokens: Array, basis: Array) -> Array:
        return super().read(tokens[..., :128], basis[..., :128])


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


class SquaresTheTokens(Around):
    """Each token is divided by its norm and the result multiplied by it again; from 1.9e19 on, squares overflow."""

    def call(self, function: str, *arguments: Any) -> Any:
        x, *others = arguments
        tokens = np.asarray(x, self.parameter_dtype)
        with np.errstate(all="ignore"):
            norms = np.sqrt((tokens**2).sum(axis=-1, keepdims=True))
            norms = np.where(norms > 0, norms, self.parameter_dtype.type(1))
            tokens = tokens / norms
        if function in FORWARD:
            return np.asarray((super().call(function, tokens, *others) * norms).astype(x.dtype))
        *parameters, cotangent, iterations = others
        upstream = self.checked_cotangent(cotangent, x) * norms
        of_parameters = super().call(function, tokens, *parameters, upstream, iterations)
        return of_parameters._replace(x=super().call(function, *arguments).x)


class StrengthBeforeTheBasis(NumpyPort):
    """``A^T (alpha z)`` for ``alpha (A^T z)``: the same number, but for a large x beside a small basis it overflows."""

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        mixing = self.oriented(self.sinkhorn_projection(mix_logits, iterations))
        with np.errstate(all="ignore"):
            streams = self.strength(gate, rows) * self.read(tokens, rows)
            return np.asarray((tokens + self.write(mixing @ streams - streams, rows)).astype(x.dtype))


_ELSEWHERE = (PROJECTION, STATE_FILE)
_FORWARD = (PROJECTION, ADAPTER, STATE_FILE)
_FAR = ("test_linear_in_x_and_in_the_cotangent_at_any_magnitude",)
_TOKENS = ("test_design::test_adapter",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("one_block_of_tokens", partial(Returns, FORWARD, one_block_of_tokens), _TOKENS, _FORWARD),
        ("last_block_of_tokens", partial(Returns, VJP, last_block_of_tokens), ("test_adapter_gradient",), _FORWARD),
        ("one_block_of_hidden_size", OneBlockOfHiddenSize, ("test_golden_adapter",), _FORWARD),
        ("one_block_of_matrices", partial(Returns, PROJECT, one_block_of_matrices), ("test_projection",), _FORWARD),
        ("no_more_than_20_iterations", NoMoreThan20Iterations, ("test_projection",), _FORWARD),
        ("powers_of_kappa_overflow", PowersOfKappaOverflow, (ADAPTER,), _ELSEWHERE),
        ("strength_before_the_basis", StrengthBeforeTheBasis, _FAR, _ELSEWHERE),
        ("squares_the_tokens", partial(SquaresTheTokens, FORWARD), _FAR, _FORWARD),
        ("norms_the_tokens_in_the_gradient", partial(SquaresTheTokens, VJP), _FAR, _FORWARD),
    )
)
