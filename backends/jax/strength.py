"""The strength of an adapter: the gate over a smooth bound of the squared norm of its basis.

Both derivatives are custom JVPs in closed form, so forward and reverse mode work, and so do second derivatives.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from backends.jax.dtypes import floats, widened
from reference.errors import ShapeError


def adapter_strength(gate_logit: Array, basis: Array) -> Array:
    """``alpha = sigmoid(gamma) / kappa``, ``kappa = (trace (A A^T)^8)^(1/8)``, batched over leading axes.

    Args:
        gate_logit: gamma, shape (...). basis: A, shape (..., n, r, d). Half precision is taken to float32.

    Returns:
        alpha, shape (...); NaN where A is zero.

    Raises: DtypeError, ShapeError. Clauses: MIX-5, MIX-6, GRAD-6.
    """
    gate_logit, basis = widened(*floats(gate_logit=gate_logit, basis=basis))
    if basis.ndim < 3:
        raise ShapeError(
            "basis", got=tuple(basis.shape), allowed="(..., n, r, d)", remedy="give each stream r directions"
        )
    strength: Array = _strength(gate_logit, basis)
    return strength


@jax.jit
def _strength(gate_logit: Array, basis: Array) -> Array:
    # In units of a power of two near to the largest entry, which no rounding sees and no derivative either, since
    # alpha A^T A stays the same: 1 / kappa^2, a factor of the gradient, would overflow for a small basis.
    largest = jnp.abs(lax.stop_gradient(basis)).max((-3, -2, -1), keepdims=True)
    unit = lax.reduce_precision(largest, jnp.finfo(basis.dtype).nexp, 0)
    unit = jnp.where((unit > 0) & (unit < jnp.inf), unit, 1)
    scale = unit[..., 0, 0, 0]
    return sigmoid(gate_logit) / squared_norm_bound(basis / unit) / scale / scale


@jax.custom_jvp
def sigmoid(logit: Array) -> Array:
    """JAX's own sigmoid differentiates to ``s (1 - s)``, which loses its digits for an open gate. Clause: GRAD-6."""
    return jax.nn.sigmoid(logit)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logit,), (tangent,) = primals, tangents
    return sigmoid(logit), tangent * sigmoid(logit) * sigmoid(-logit)


@jax.custom_jvp
def squared_norm_bound(basis: Array) -> Array:
    """kappa of ``basis`` (..., n, r, d), shape (...). Clauses: MIX-6, GRAD-6."""
    return _bound_and_slope(_flat(basis))[0]


@squared_norm_bound.defjvp
def _squared_norm_bound_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    flat, tangent = _flat(primals[0]), _flat(tangents[0])
    kappa, slope = _bound_and_slope(flat)
    return kappa, (slope * tangent).sum((-2, -1))


def _bound_and_slope(flat: Array) -> tuple[Array, Array]:
    """kappa, and ``dkappa/dA = 2 kappa C^7 A / trace C^8``; C is divided by its trace before it is squared."""
    gram = _product(flat, flat.mT)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    normalised = gram / trace
    squared = _product(normalised, normalised)
    fourth = _product(squared, squared)
    trace_eighth = (fourth * fourth).sum((-2, -1), keepdims=True)
    ratio = trace_eighth**0.125
    seventh = _product(_product(fourth, squared), normalised)
    slope = 2 * ratio / trace_eighth * _product(seventh, flat)
    return (trace * ratio)[..., 0, 0], slope


def _flat(basis: Array) -> Array:
    return basis.reshape(*basis.shape[:-3], -1, basis.shape[-1])


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
