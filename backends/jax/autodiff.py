"""The forward formulas in plain JAX operations, without a custom rule: every derivative, in every mode.

The functions of this backend have a custom VJP: of them, JAX takes gradients, and every derivative of a gradient, which
comes from these twins; it refuses forward mode (``jax.jvp``, ``jax.jacfwd``, ``jax.linearize``) of the functions
themselves. The twins compute the same values and have that too. They are slower, keep all iterates for the backward
pass, and miss the last digits of SINK-5 at n > 8. They check the closed forms (BACK-6).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

ROW, COLUMN = -1, -2


def plain_projection_vjp(mix_logits: Array, cotangent: Array, iterations: int = 20) -> Array:
    """The VJP that JAX derives from :func:`plain_projection`."""
    gradient: Array = jax.vjp(partial(plain_projection, iterations=iterations), mix_logits)[1](cotangent)[0]
    return gradient


def plain_projection(mix_logits: Array, iterations: int = 20) -> Array:
    """M of :func:`reference.sinkhorn_projection`, (..., n, n). Clauses: SINK-3, SINK-4, BACK-6."""

    def step(log_matrix: Array, _: None) -> tuple[Array, None]:
        return jax.nn.log_softmax(jax.nn.log_softmax(log_matrix, ROW), COLUMN), None

    poison = (mix_logits * 0).sum((ROW, COLUMN), keepdims=True)  # NaN where a logit is not finite (SINK-9)
    log_matrix = mix_logits - mix_logits.max((ROW, COLUMN), keepdims=True) + poison
    log_matrix, _ = lax.scan(step, log_matrix, None, length=iterations - 1)
    plain = jax.nn.softmax(jax.nn.log_softmax(log_matrix, ROW), COLUMN)
    row_sums = plain.sum(ROW, keepdims=True)
    first_argmax = row_sums.argmax(COLUMN, keepdims=True)  # max() would share the gradient among equal row sums
    largest = jnp.take_along_axis(row_sums, first_argmax, COLUMN)
    return plain / largest + (1 - row_sums / largest) / mix_logits.shape[-1]


def plain_adapter(x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int = 20) -> Array:
    """y of :func:`reference.adapter_forward`, in the dtype of the arguments. Clauses: MIX-2, BACK-6."""
    mixing = plain_projection(mix_logits, iterations)
    with jax.default_matmul_precision("highest"):
        flat = basis.reshape(-1, basis.shape[-1])
        gram = flat @ flat.T
        scale = jnp.trace(gram)
        kappa = scale * jnp.trace(jnp.linalg.matrix_power(gram / scale, 8)) ** 0.125
        streams = jnp.einsum("...d,nrd->...nr", x, basis)
        moved = jnp.einsum("ij,...jr->...ir", mixing, streams) - streams
        return x + jax.nn.sigmoid(gate_logit) / kappa * jnp.einsum("...nr,nrd->...d", moved, basis)
