"""Residual mixing in JAX: one layer's streams, with the gradient in closed form, and the gate's strength."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from reference.errors import ShapeError

# A GPU would multiply float32 in tf32 and a TPU in bfloat16, which is not the arithmetic of MIX-10.
_PRECISION = lax.Precision.HIGHEST


def residual_mixing(x: Array, mixing: Array, strength: Array, basis: Array) -> Array:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``, ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d), any floating dtype.
        mixing: M, shape (n, n). strength: alpha, one value. basis: A, shape (n, r, d). All float32 (or float64).

    Returns:
        y, shape and dtype of x. The arithmetic is float32, or float64 if x or a parameter is; full float32 on
        accelerators too.

    The gradient is a custom VJP, so JAX refuses forward mode (``jax.jvp``); see :mod:`backends.jax.autodiff`.

    Raises: ShapeError if the sizes do not fit, or there is more than one strength. Clauses: MIX-2..MIX-4, MIX-10,
    GRAD-4..GRAD-7. Source: ours.
    """
    x, mixing, strength, basis = map(jnp.asarray, (x, mixing, strength, basis))
    if strength.size != 1:
        raise ShapeError(
            "strength",
            got=strength.shape,
            allowed="a single value",
            remedy="use one gate per layer: one per stream would let the adapter expand; scan or vmap over layers",
        )
    if basis.ndim != 3 or mixing.shape != (len(basis),) * 2 or x.shape[-1:] != basis.shape[2:]:
        raise ShapeError(
            "x",
            got=f"{x.shape} with mixing {mixing.shape} and basis {basis.shape}",
            allowed="(..., d) with (n, n) and (n, r, d)",
            remedy="build the adapter with the model's hidden_size; scan or vmap over the layers of a stack",
        )
    mixed: Array = _mix(*_varying_alike(x, mixing, strength.reshape(()), basis))
    return mixed


@jax.custom_vjp
def _mix_rule(x: Array, mixing: Array, strength: Array, basis: Array) -> Array:
    tokens, wide_mixing, alpha, directions = _widened(x, mixing, strength, basis)
    write_out = alpha * _over_streams(_difference(wide_mixing).T, directions)
    return (tokens + _write(_read(tokens, directions), write_out)).astype(x.dtype)


def _keep_inputs(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _mix_rule(*inputs), inputs


def _gradient(inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    x, mixing, strength, basis = inputs
    tokens, wide_mixing, alpha, directions = _widened(x, mixing, strength, basis)
    upstream, difference = cotangent.astype(tokens.dtype), _difference(wide_mixing)
    streams, grad_streams = _read(tokens, directions), _read(upstream, directions)
    grad_x = upstream + _write(grad_streams, alpha * _over_streams(difference, directions))
    # Two products of the size of A carry all that the parameters need from the tokens.
    written = _over_tokens(streams, upstream).reshape(directions.shape)
    read = _over_tokens(grad_streams, tokens).reshape(directions.shape)
    correlation = jnp.einsum("ird,jrd->ij", directions, written, precision=_PRECISION)
    grad_basis = alpha * (_over_streams(difference, written) + _over_streams(difference.T, read))
    gradients = (grad_x, alpha * correlation, (difference * correlation).sum(), grad_basis)
    return tuple(gradient.astype(value.dtype) for gradient, value in zip(gradients, inputs, strict=True))


_mix_rule.defvjp(_keep_inputs, _gradient)
_mix = jax.jit(_mix_rule)


def _widened(*inputs: Array) -> tuple[Array, ...]:
    dtype = jnp.result_type(jnp.float32, *(value.dtype for value in inputs))
    return tuple(value.astype(dtype) for value in inputs)


def _difference(mixing: Array) -> Array:
    """``D = M - I``."""
    return mixing - jnp.eye(len(mixing), dtype=mixing.dtype)


def _over_streams(matrix: Array, directions: Array) -> Array:
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


def _varying_alike(*inputs: Array) -> tuple[Array, ...]:
    """Inside ``shard_map``, all inputs are told to vary over the axes that any of them varies over.

    A custom VJP returns cotangents of the type of its inputs; where a parameter is the same on all devices, JAX then
    sums its gradient over the devices that hold different tokens. Outside ``shard_map`` nothing happens.
    """
    every = frozenset[str]().union(*map(_axes, inputs))
    return tuple(
        lax.pcast(value, tuple(sorted(missing)), to="varying") if (missing := every - _axes(value)) else value
        for value in inputs
    )


def _axes(value: Array) -> frozenset[str]:
    """Mesh axes over which a value varies in ``shard_map``; the attribute has had two names."""
    kind = jax.typeof(value)
    axes: frozenset[str] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return axes
