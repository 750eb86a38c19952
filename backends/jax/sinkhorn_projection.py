"""Sinkhorn projection in JAX: all matrices in one call, gradient in closed form."""

from collections.abc import Callable
from functools import cache, partial

import jax
from jax import Array, lax

from backends.jax.autodiff import plain_projection, plain_projection_vjp
from backends.jax.birkhoff import birkhoff_correction, birkhoff_correction_vjp, column_softmax, column_softmax_vjp
from backends.jax.dtypes import floats, widened
from backends.jax.iteration import (
    logarithmic_weights,
    logarithmic_weights_vjp,
    scaled_form_holds,
    scaled_weights,
    scaled_weights_vjp,
)
from backends.jax.kernels import Kernels, wants_pallas
from backends.jax.opaque import opaque_projection
from reference.errors import ShapeError
from reference.sinkhorn_projection import checked_iterations


def sinkhorn_projection(mix_logits: Array, iterations: int = 20, kernels: Kernels = "auto") -> Array:
    """Project logits (..., n, n) onto the Birkhoff polytope, in float32 (float64 for float64 logits).

    The formula and the guarantees are those of :func:`reference.sinkhorn_projection`. Logits that are not finite give
    NaN in every entry of their matrix. The gradient is the exact derivative of the K unrolled steps; the backward
    pass runs them again, so that only the logits are kept. Derivatives of the gradient (``jax.hessian``,
    ``jax.grad`` of ``jax.grad``) are those of :func:`backends.jax.autodiff.plain_projection`. Forward mode of the
    function itself (``jax.jvp``, ``jax.jacfwd``) is refused by JAX, as of every function with a custom VJP:
    differentiate :func:`backends.jax.autodiff.plain_projection` for that.

    ``kernels``: "jax" is plain JAX; "pallas" the Pallas kernels for a GPU, n <= 64, which are used only where they are
    asked for since no GPU has measured them yet (on a CPU an error, or their interpreter, for tests, where
    CRMA_PALLAS_INTERPRET=1 is set); "auto" is "jax".

    Raises: DtypeError, ShapeError, ConfigError, DeviceUnavailableError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3.
    """
    (mix_logits,) = floats(mix_logits=mix_logits)
    if mix_logits.ndim < 2 or mix_logits.shape[-1] != mix_logits.shape[-2] or mix_logits.shape[-1] == 0:
        raise ShapeError(
            "mix_logits",
            got=mix_logits.shape,
            allowed="(..., n, n) with n >= 1",
            remedy="pass one square matrix of logits per layer",
        )
    (logits,) = widened(mix_logits)
    if wants_pallas(kernels):
        from backends.jax.kernels.sinkhorn_projection import sinkhorn_projection as by_pallas

        return by_pallas(logits, checked_iterations(iterations))
    return _projection(logits, checked_iterations(iterations))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _projection_rule(logits: Array, iterations: int) -> Array:
    return _forward(iterations)(logits)


def _keep_logits(logits: Array, iterations: int) -> tuple[Array, Array]:
    return _forward(iterations)(logits), logits  # not the rule itself, which has no forward mode


def _gradient(iterations: int, logits: Array, grad_mixing: Array) -> tuple[Array]:
    return (_backward(iterations)(logits, grad_mixing),)


_projection_rule.defvjp(_keep_logits, _gradient)
_projection = jax.jit(_projection_rule, static_argnums=1)


@cache
def _forward(iterations: int) -> Callable[[Array], Array]:
    def forward(logits: Array) -> Array:
        matrices = _batch_last(logits)
        scaled, logarithmic = (partial(f, iterations=iterations) for f in (scaled_weights, logarithmic_weights))
        weights = _cond(matrices, scaled, logarithmic)
        return _batch_first(birkhoff_correction(column_softmax(weights)), logits.shape)

    return opaque_projection(forward, partial(plain_projection, iterations=iterations))


@cache
def _backward(iterations: int) -> Callable[[Array, Array], Array]:
    def backward(logits: Array, grad_mixing: Array) -> Array:
        matrices, upstream = _batch_last(logits), _batch_last(grad_mixing)

        def to_weights(weights: Array) -> Array:
            plain = column_softmax(weights)
            return column_softmax_vjp(plain, birkhoff_correction_vjp(plain, upstream))

        scaled, logarithmic = (
            partial(f, iterations=iterations, upstream=to_weights)
            for f in (scaled_weights_vjp, logarithmic_weights_vjp)
        )
        return _batch_first(_cond(matrices, scaled, logarithmic), logits.shape)

    return opaque_projection(backward, partial(plain_projection_vjp, iterations=iterations))


def _cond(matrices: Array, scaled: Callable[[Array], Array], logarithmic: Callable[[Array], Array]) -> Array:
    """One branch for the whole batch. On a GPU a branch would wait for the host, so there it is always the second."""

    def choose(matrices: Array) -> Array:
        chosen: Array = lax.cond(scaled_form_holds(matrices), scaled, logarithmic, matrices)
        return chosen

    result: Array = lax.platform_dependent(matrices, cuda=logarithmic, rocm=logarithmic, default=choose)
    return result


def _batch_last(matrices: Array) -> Array:
    return matrices.reshape(-1, *matrices.shape[-2:]).transpose(1, 2, 0)


def _batch_first(matrices: Array, shape: tuple[int, ...]) -> Array:
    return matrices.transpose(2, 0, 1).reshape(shape)
