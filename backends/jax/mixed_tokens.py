"""The formulas of residual mixing in plain JAX, of checked arguments: y, its cotangents, and what the kernels share.

Clauses: MIX-2, MIX-3, MIX-10, GRAD-4..GRAD-7.
"""

import jax.numpy as jnp
from jax import Array, lax

from backends.jax.dtypes import widened

# A GPU would multiply float32 in tf32 and a TPU in bfloat16, which is not the arithmetic of MIX-10.
_PRECISION = lax.Precision.HIGHEST


def mixed_tokens(x: Array, mixing: Array, strength: Array, basis: Array) -> Array:
    tokens, wide_mixing, alpha, directions = widened(x, mixing, strength, basis)
    difference = difference_of(wide_mixing)
    if _few(tokens, directions):
        # alpha times A, since alpha times the streams would leave the range of float32 for a small A
        moved = _mixed(difference, _read(tokens, directions))
        return (tokens + _write(moved, alpha * directions)).astype(x.dtype)
    write_out = alpha * over_streams(difference.T, directions)
    return (tokens + _write(_read(tokens, directions), write_out)).astype(x.dtype)


def mixed_tokens_vjp(inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    x, mixing, strength, basis = inputs
    tokens, wide_mixing, alpha, directions = widened(x, mixing, strength, basis)
    upstream, difference = cotangent.astype(tokens.dtype), difference_of(wide_mixing)
    streams, grad_streams = _read(tokens, directions), _read(upstream, directions)
    if _few(tokens, directions):
        gradients = _gradients_of_few(tokens, upstream, difference, alpha, directions, streams, grad_streams)
        return tuple(gradient.astype(value.dtype) for gradient, value in zip(gradients, inputs, strict=True))
    grad_x = upstream + _write(grad_streams, alpha * over_streams(difference, directions))
    # Two products of the size of A carry all that the parameters need from the tokens.
    written = _over_tokens(streams, upstream).reshape(directions.shape)
    read = _over_tokens(grad_streams, tokens).reshape(directions.shape)
    gradients = (grad_x, *parameter_gradients(difference, alpha, directions, written, read))
    return tuple(gradient.astype(value.dtype) for gradient, value in zip(gradients, inputs, strict=True))


def _few(tokens: Array, directions: Array) -> bool:
    """Whether to mix the streams of each token, (n, r), rather than the directions, (n, r, d), once for all tokens.

    The latter is work on arrays of the size of the directions, which only pays with several times n r tokens.
    """
    return tokens.size <= 4 * directions.size


def _mixed(matrix: Array, streams: Array) -> Array:
    """``sum_j matrix_ij z_j``, (n, n), (..., n r) -> (..., n r)."""
    n = len(matrix)
    apart = streams.reshape(*streams.shape[:-1], n, streams.shape[-1] // n)
    return jnp.matmul(matrix, apart, precision=_PRECISION).reshape(streams.shape)


def _gradients_of_few(
    tokens: Array,
    upstream: Array,
    difference: Array,
    alpha: Array,
    directions: Array,
    streams: Array,
    grad_streams: Array,
) -> tuple[Array, Array, Array, Array]:
    mixed, grad_mixed = _mixed(difference, streams), _mixed(difference.T, grad_streams)
    grad_x = upstream + _write(grad_mixed, alpha * directions)
    of_directions = _over_tokens(mixed, upstream) + _over_tokens(grad_mixed, tokens)
    grad_basis = alpha * of_directions.reshape(directions.shape)
    n, r, d = directions.shape
    written, read = (h.reshape(tokens.size // d, n, r) for h in (grad_streams, streams))  # of no tokens, too
    correlation = jnp.einsum("tir,tjr->ij", written, read, precision=_PRECISION)
    return grad_x, alpha * correlation, (difference * correlation).sum(), grad_basis


def parameter_gradients(
    difference: Array, alpha: Array, directions: Array, written: Array, read: Array
) -> tuple[Array, Array, Array]:
    """Of M, alpha and A, from ``written``, the sum of z y'^T over tokens, and ``read``, that of A y' x^T, as A."""
    correlation = jnp.einsum("ird,jrd->ij", directions, written, precision=_PRECISION)
    grad_basis = alpha * (over_streams(difference, written) + over_streams(difference.T, read))
    return alpha * correlation, (difference * correlation).sum(), grad_basis


def difference_of(mixing: Array) -> Array:
    """``D = M - I``."""
    return mixing - jnp.eye(len(mixing), dtype=mixing.dtype)


def over_streams(matrix: Array, directions: Array) -> Array:
    """``sum_j matrix_ij directions_j``, (n, n), (n, r, d) -> (n, r, d)."""
    return jnp.tensordot(matrix, directions, 1, precision=_PRECISION)


def _read(tokens: Array, directions: Array) -> Array:
    """(..., d), (n, r, d) -> (..., n r)."""
    return jnp.matmul(tokens, directions.reshape(-1, directions.shape[2]).T, precision=_PRECISION)


def _write(streams: Array, directions: Array) -> Array:
    """(..., n r), (n, r, d) -> (..., d)."""
    return jnp.matmul(streams, directions.reshape(-1, directions.shape[2]), precision=_PRECISION)


def _over_tokens(streams: Array, tokens: Array) -> Array:
    """(..., n r), (..., d) -> (n r, d)."""
    leading = tuple(range(tokens.ndim - 1))
    return jnp.tensordot(streams, tokens, (leading, leading), precision=_PRECISION)
