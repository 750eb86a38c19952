"""Functions that JAX does not look into when it differentiates or maps: it is told both instead.

``jax.custom_jvp`` around ``custom_vmap`` says the same, but ``lax.scan`` forgets the first as it moves what does
not depend on the loop out of it, and JAX has no reverse mode of the second. A primitive stays what it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Outputs = tuple[Array, ...]
Function = Callable[..., Outputs]

_opaque = Primitive("crma_opaque")
_opaque.multiple_results = True


def opaque(function: Function, plain: Function, outputs: int, takes_batches: bool = False) -> Function:
    """``function`` for its values, and ``plain``, the same map in operations that JAX differentiates, for derivatives.

    Both give a tuple of as many ``outputs``, of the types of the first arguments. ``takes_batches``: an axis in front
    of all arguments is a batch to them, so that they need no ``vmap``. Make it once: it is a key in JAX's caches.
    """

    def call(*arguments: Array) -> Outputs:
        settings = {"function": function, "plain": plain, "outputs": outputs, "takes_batches": takes_batches}
        return tuple(_opaque.bind(*arguments, **settings, maps=0))

    return call


def _mapped(function: Function, maps: int) -> Function:
    for _ in range(maps):
        function = jax.vmap(function)
    return function


def _run(*arguments: Array, function: Function, maps: int, **_: Any) -> Outputs:
    return _mapped(function, maps)(*arguments)


def _differentiate(primals: Outputs, tangents: Any, **settings: Any) -> tuple[Any, Any]:
    plain = _mapped(settings["plain"], settings["maps"])
    return _opaque.bind(*primals, **settings), jax.jvp(plain, primals, tuple(map(ad.instantiate_zeros, tangents)))[1]


def _map(arguments: Any, axes: Any, *, maps: int, **settings: Any) -> tuple[Any, list[int]]:
    (size,) = {value.shape[axis] for value, axis in zip(arguments, axes, strict=True) if axis is not None}
    whole = [
        jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)
        for value, axis in zip(arguments, axes, strict=True)
    ]
    results = _opaque.bind(*whole, **settings, maps=maps + (not settings["takes_batches"]))
    return results, [0] * len(results)


_compiled = jax.jit(_run, static_argnames=("function", "maps"))
_opaque.def_impl(lambda *values, function, maps, **_: _compiled(*values, function=function, maps=maps))
_opaque.def_abstract_eval(lambda *types, outputs, **_: types[:outputs])
mlir.register_lowering(_opaque, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_opaque] = _differentiate
batching.primitive_batchers[_opaque] = _map


def opaque_projection(function: Callable[..., Array], plain: Callable[..., Array]) -> Callable[..., Array]:
    """vmap is the batch: a ``cond`` that JAX mapped itself would become a ``select`` and run both branches."""
    whole = opaque(lambda *arrays: (function(*arrays),), lambda *arrays: (plain(*arrays),), 1, takes_batches=True)
    return lambda *arrays: whole(*arrays)[0]
