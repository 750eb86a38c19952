"""Residual mixing in JAX: one layer's streams, with the gradient in closed form, and the gate's strength."""

import jax
from jax import Array, lax

from backends.jax.dtypes import floats
from backends.jax.kernels import Kernels, wants_pallas
from backends.jax.mixed_tokens import mixed_tokens, mixed_tokens_vjp
from reference.errors import ShapeError


def residual_mixing(x: Array, mixing: Array, strength: Array, basis: Array, kernels: Kernels = "auto") -> Array:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``, ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d), floats of 16 bits or more.
        mixing: M, shape (n, n). strength: alpha, one value. basis: A, shape (n, r, d). All float32 (or float64).
        kernels: "auto", "jax", or "pallas" for n r <= 512, as in :func:`backends.jax.sinkhorn_projection`.

    Returns:
        y, shape and dtype of x. The arithmetic is float32, or float64 if x or a parameter is; full float32 on
        accelerators too.

    The gradient is a custom VJP, which JAX differentiates further, while it refuses forward mode of the function itself
    (``jax.jvp``); see :mod:`backends.jax.autodiff`.

    Raises: DtypeError; ShapeError if the sizes do not fit, or there is more than one strength; ConfigError and
    DeviceUnavailableError by the kernels. Clauses: MIX-2..MIX-4, MIX-10, GRAD-4..GRAD-7.
    """
    x, mixing, strength, basis = floats(x=x, mixing=mixing, strength=strength, basis=basis)
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
    inputs = _varying_alike(x, mixing, strength.reshape(()), basis)
    if wants_pallas(kernels):
        from backends.jax.kernels.residual_mixing import residual_mixing as by_pallas

        return by_pallas(*inputs)
    mixed: Array = _mix(*inputs)
    return mixed


_mix_rule = jax.custom_vjp(mixed_tokens)
_mix_rule.defvjp(lambda *inputs: (mixed_tokens(*inputs), inputs), mixed_tokens_vjp)
_mix = jax.jit(_mix_rule)


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
