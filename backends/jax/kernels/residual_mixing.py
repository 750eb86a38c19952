"""Residual mixing in Pallas: device memory sees each x once forward, and the kernels know a flat width n r alone.

``y = x + (x A^T) C`` with ``C = alpha D^T A``, ``D = M - I``; backwards ``x' = y' + w E`` with ``E = alpha D A`` and
``w = A y'``, and the sums over tokens ``P = z y'^T``, ``Q = w x^T``, in parts of a fixed order without atomics. What is
of the parameters' size is plain JAX (:mod:`backends.jax.mixed_tokens`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
from jax import Array

from backends.jax.dtypes import widened
from backends.jax.kernels.launch import interpreted
from backends.jax.kernels.token_launch import gradients, write_back
from backends.jax.mixed_tokens import (
    difference_of,
    mixed_tokens,
    mixed_tokens_vjp,
    over_streams,
    parameter_gradients,
)
from backends.jax.opaque import opaque
from reference.errors import ConfigError

MOST_STREAMS, MOST_WIDTH = 64, 512


def residual_mixing(x: Array, mixing: Array, strength: Array, basis: Array) -> Array:
    """The function of :func:`backends.jax.residual_mixing.residual_mixing`, n <= 64, n r <= 512, of checked arguments.

    x (..., d), mixing (n, n), strength (), basis (n, r, d). On a GPU no figure has been taken yet: it compiles for one,
    and its results were tested in Pallas' interpreter.

    Raises: ConfigError, DeviceUnavailableError. Clauses: MIX-2, MIX-3, MIX-10, GRAD-4..GRAD-7.
    """
    n, rank, _ = basis.shape
    if n > MOST_STREAMS or n * rank > MOST_WIDTH:
        raise ConfigError(
            "streams, streams * rank",
            got=f"{n}, {n} * {rank} = {n * rank}",
            allowed=f"at most {MOST_STREAMS} and {MOST_WIDTH} in the Pallas kernel",
            remedy="use kernels='jax', which has no limit",
        )
    mixed: Array = _mix(x, mixing, strength, basis, interpreted(x=x, basis=basis))
    return mixed


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mix_rule(x: Array, mixing: Array, strength: Array, basis: Array, interpret: bool) -> Array:
    return _forward(interpret)(x, mixing, strength, basis)[0]


def _keep_inputs(*arguments: Any) -> tuple[Array, tuple[Array, ...]]:
    *inputs, interpret = arguments
    return _forward(interpret)(*inputs)[0], tuple(inputs)


def _gradient(interpret: bool, inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    return _backward(interpret)(*inputs, cotangent)


@cache
def _forward(interpret: bool) -> Callable[..., tuple[Array, ...]]:
    def forward(*inputs: Array) -> tuple[Array, ...]:
        _, wide_mixing, alpha, directions = widened(*inputs)
        write_out = alpha * over_streams(difference_of(wide_mixing).T, directions)
        return (write_back(inputs[0], directions, write_out, interpret),)

    return opaque(forward, lambda *inputs: (mixed_tokens(*inputs),), outputs=1)


@cache
def _backward(interpret: bool) -> Callable[..., tuple[Array, ...]]:
    def backward(*arguments: Array) -> tuple[Array, ...]:
        *inputs, cotangent = arguments
        _, wide_mixing, alpha, directions = widened(*inputs)
        difference = difference_of(wide_mixing)
        mixed = alpha * over_streams(difference, directions)
        grad_x, written, read = gradients(inputs[0], cotangent, directions, mixed, interpret)
        by_parameter = parameter_gradients(difference, alpha, directions, written, read)
        return grad_x, *(value.astype(own.dtype) for value, own in zip(by_parameter, inputs[1:], strict=True))

    return opaque(backward, lambda *arguments: mixed_tokens_vjp(arguments[:-1], arguments[-1]), outputs=4)


_mix_rule.defvjp(_keep_inputs, _gradient)
_mix = jax.jit(_mix_rule, static_argnums=4)
