"""Products of activations with weights, in 16 bits with sums in float32; and weights that stay as they are.

XLA on a CPU has instructions for 16-bit operands with float32 results only. Asked for a 16-bit result it widens both
operands, and so it does where JAX multiplies a float32 cotangent: that takes twice the time. Hence the rules here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from backends.jax.decoder.attention import Array, precision
from backends.jax.dtypes import common_dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenWeight:
    """A matrix, or one of each layer, that is never trained: the bits of its 16-bit floats, (..., outputs, inputs).

    As integers, since XLA on a CPU widens all layers of a stack of 16-bit floats before it takes one of them. Integers
    have no gradient, and JAX refuses to be asked for one.
    """

    bits: Array  # uint16
    dtype: np.dtype[Any] = field(metadata={"static": True})

    @property
    def floats(self) -> Array:
        """The matrix itself."""
        return jax.lax.bitcast_convert_type(self.bits, self.dtype)


#: the name under which ``jax.checkpoint`` finds what :func:`kept` keeps
KEPT = "kept"


def linear(x: Array, weight: Array | FrozenWeight, dtype: Any = None) -> Array:
    """``x W^T``: (..., inputs), (outputs, inputs) -> (..., outputs); both rounded to ``dtype`` first, where given.

    In 16 bits y and its gradients are sums in float32, each rounded once at its end. JAX differentiates these gradients
    further, and refuses forward mode (``jax.jvp``) of y.
    """
    dtype = jnp.dtype(common_dtype(x.dtype, weight.dtype) if dtype is None else dtype)
    x = x.astype(dtype)
    if isinstance(weight, FrozenWeight):
        if weight.dtype == dtype:
            return kept(_frozen_product(x, weight.bits, False))
        weight = weight.floats
    weight = weight.astype(dtype)
    if dtype.itemsize == 2:
        return kept(_product(x, weight))
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _frozen_product(x: Array, bits: Array, transposed: bool) -> Array:
    """``x W^T``, or ``x W``."""
    weight = FrozenWeight(bits, x.dtype).floats
    return _rounded_product("...o,oi->...i" if transposed else "...i,oi->...o", x, weight)


# The weight is all that is kept: its layer of the stack, which takes no more room.
_frozen_product.defvjp(
    lambda x, bits, transposed: (_frozen_product(x, bits, transposed), bits),
    lambda transposed, bits, cotangent: (_frozen_product(cotangent, bits, not transposed), None),
)


@jax.custom_vjp
def _product(x: Array, weight: Array) -> Array:
    return _rounded_product("...i,oi->...o", x, weight)


def _product_vjp(inputs: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = inputs
    outputs_first, inputs_first = (h.reshape(-1, h.shape[-1]).T for h in (cotangent, x))
    return _product(cotangent, weight.T), _product(outputs_first, inputs_first)


_product.defvjp(lambda *inputs: (_product(*inputs), inputs), _product_vjp)


def _rounded_product(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32).astype(left.dtype)


def kept(values: Array) -> Array:
    """The same values, of 16 bits, which :func:`keep_products` keeps for the backward pass, as integers."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.uint16)
    return _from_bits(values, checkpoint_name(bits, KEPT))


@jax.custom_jvp
def _from_bits(values: Array, bits: Array) -> Array:
    """``values``, read from ``bits``, so that only these are needed; the derivative is that of ``values``."""
    return jax.lax.bitcast_convert_type(bits, values.dtype)


@_from_bits.defjvp
def _from_bits_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _from_bits(*primals), tangents[0]


def keep_products(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that keeps what is :func:`kept` for its backward pass, and computes the rest again.

    The rest is norms, activations and the weights of attention, which cost less than to store them.
    """
    return jax.checkpoint(layer, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
