"""Derivatives of gradients, in every form in which JAX takes them, beside those of autodiff.py and differences.

In float64, where rounding does not hide a wrong formula. Products with a direction stand for whole Hessians, but for
one: they take seconds to compile less.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from backends.jax import CRMAAdapter, adapter_forward, residual_mixing, sinkhorn_projection
from backends.jax.autodiff import plain_adapter, plain_projection
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.kernels.launch import interpreter

K = 3
quick = partial(jax.jit, compiler_options=QUICK)


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


def inputs() -> tuple[Any, ...]:
    return draw(2, 7), draw(3, 3), draw(), draw(3, 2, 7)


def along(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A direction to differentiate in."""
    return tuple(draw(*value.shape, seed=20 + k) for k, value in enumerate(arguments))


def loss_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Not linear in what the function gives, so that its own derivative counts as well as that of its gradient."""

    def loss(arguments: tuple[Any, ...]) -> Any:
        result = jnp.sin(3.0 * function(*arguments))
        return (result * draw(*result.shape, seed=9)).sum()

    return loss


def forward_over_reverse(loss: Any, arguments: Any) -> Any:
    return jax.jvp(jax.grad(loss), (arguments,), (along(arguments),))[1]


def jvp_of_vjp(loss: Any, arguments: Any) -> Any:
    pull_back = lambda v: jax.vjp(loss, v)[1](jnp.ones(()))[0]  # noqa: E731
    return jax.jvp(pull_back, (arguments,), (along(arguments),))[1]


def reverse_over_reverse(loss: Any, arguments: Any) -> Any:
    def slope(values: Any) -> Any:
        gradients = jax.grad(loss)(values)
        return sum((g * way).sum() for g, way in zip(gradients, along(arguments), strict=True))

    return jax.grad(slope)(arguments)


def under_remat(loss: Any, arguments: Any) -> Any:
    return reverse_over_reverse(jax.checkpoint(loss), arguments)


def under_vmap(loss: Any, arguments: Any) -> Any:
    batch = tuple(jnp.stack([value + 1.0, value]) for value in arguments)
    both = jax.vmap(lambda *values: forward_over_reverse(loss, values))(*batch)
    return tuple(leaf[1] for leaf in both)


def whole_hessian(loss: Any, arguments: Any) -> Any:
    blocks = jax.hessian(loss)(arguments)
    return tuple(
        sum(jnp.tensordot(block, way, way.ndim) for block, way in zip(row, along(arguments), strict=True))
        for row in blocks
    )


FORMS = (forward_over_reverse, jvp_of_vjp, reverse_over_reverse, under_remat, under_vmap, whole_hessian)


def assert_same_tree(left: Any, right: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.abs(other).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def expected() -> Any:
    """Of the plain formulas, which two kinds of derivatives agree on."""
    with jax.enable_x64(True):
        loss = loss_of(partial(plain_adapter, iterations=K))
        one, other = quick(lambda v: (forward_over_reverse(loss, v), reverse_over_reverse(loss, v)))(inputs())
        assert_same_tree(one, other)
        return one


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_adapter_in_every_form(form: Any, expected: Any) -> None:
    loss = loss_of(partial(adapter_forward, iterations=K))
    assert_same_tree(quick(lambda v: form(loss, v))(inputs()), expected)


def test_the_adapter_through_the_kernels(expected: Any) -> None:
    loss = loss_of(partial(adapter_forward, iterations=K, kernels="pallas"))
    with interpreter():
        both = quick(lambda v: (forward_over_reverse(loss, v), reverse_over_reverse(loss, v)))(inputs())
    for product in both:
        assert_same_tree(product, expected)


def test_products_are_differences_of_gradients(expected: Any) -> None:
    """Of the gradients that this backend gives, which conformance/ compares with the reference."""
    gradient, arguments, step = quick(jax.grad(loss_of(partial(adapter_forward, iterations=K)))), inputs(), 1e-6
    ahead, behind = (
        gradient(tuple(value + t * way for value, way in zip(arguments, along(arguments), strict=True)))
        for t in (step, -step)
    )
    assert_same_tree(jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 400.0])  # beyond SCALED_RANGE the first derivative takes the other form
def test_the_projection_and_its_kernel(scale: float) -> None:
    logits = (draw(2, 3, 3, scale=scale),)

    def products(project: Any) -> Any:
        loss = loss_of(partial(project, iterations=K))
        return quick(lambda v: (forward_over_reverse(loss, v), reverse_over_reverse(loss, v)))(logits)

    with interpreter():
        plain, *ours = map(
            products, (plain_projection, sinkhorn_projection, partial(sinkhorn_projection, kernels="pallas"))
        )
    for each in ours:
        for one, other in zip(jax.tree.leaves(each), jax.tree.leaves(plain), strict=True):
            assert np.isfinite(one).all()
            assert scale > 1 or np.abs(other).max() > 1e-2
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.clause("SINK-9")
def test_logits_that_are_not_finite_have_no_finite_second_derivative() -> None:
    logits = draw(4, 3, 3)
    for index, bad in enumerate((np.nan, np.inf, -np.inf)):
        logits = logits.at[index, 0, 2].set(bad)
    loss = loss_of(partial(sinkhorn_projection, iterations=2))
    for (product,) in quick(lambda v: (forward_over_reverse(loss, v), reverse_over_reverse(loss, v)))((logits,)):
        assert np.isnan(product[:3]).all()
        assert np.isfinite(product[3]).all()


def test_of_equal_row_sums_the_first_counts_in_the_second_derivative_too() -> None:
    """Where training starts; autodiff.py takes the first of them, and max() would take a share of each (GRAD-2)."""
    products = [
        quick(partial(forward_over_reverse, loss_of(partial(project, iterations=2))))((jnp.zeros((3, 3)),))
        for project in (sinkhorn_projection, plain_projection)
    ]
    assert_same_tree(*products)


def test_without_jit_and_once_more() -> None:
    """A third derivative, and operation by operation."""
    loss = loss_of(lambda s: sinkhorn_projection(s, 2)), loss_of(lambda s: plain_projection(s, 2))
    logits = (draw(2, 2),)
    assert_same_tree(forward_over_reverse(loss[0], logits), quick(partial(forward_over_reverse, loss[1]))(logits))
    third = [quick(jax.jacfwd(lambda v, f=each: reverse_over_reverse(f, v)))(logits) for each in loss]
    assert_same_tree(*third)


def test_residual_mixing_by_itself() -> None:
    x, logits, _, basis = inputs()

    def plain(x: Any, mixing: Any, strength: Any, basis: Any) -> Any:
        streams = jnp.einsum("...d,nrd->...nr", x, basis)
        moved = jnp.einsum("ij,...jr->...ir", mixing, streams) - streams
        return x + strength * jnp.einsum("...nr,nrd->...d", moved, basis)

    arguments = (x, logits, jnp.asarray(0.02), basis)
    assert_same_tree(
        *(quick(partial(reverse_over_reverse, loss_of(function)))(arguments) for function in (residual_mixing, plain))
    )


@pytest.mark.parametrize("differentiate", [forward_over_reverse, reverse_over_reverse])
@pytest.mark.parametrize("remat", [False, True])
def test_through_a_scan_over_layers(differentiate: Any, remat: bool) -> None:
    layers = 2
    arguments = draw(2, 7), draw(layers, 3, 3), draw(layers), draw(layers, 3, 2, 7)

    def by_scan(layer_of: Callable[..., Any], x: Any, *leaves: Any) -> Any:
        step = lambda x, layer: (layer_of(x, layer), None)  # noqa: E731
        stack = CRMAAdapter(leaves[0], leaves[1], leaves[2], iterations=2)
        return jax.lax.scan(jax.checkpoint(step) if remat else step, x, stack)[0]

    def plain(x: Any, layer: CRMAAdapter) -> Any:
        return plain_adapter(x, layer.mix_logits, layer.gate_logit, layer.basis, iterations=2)

    assert_same_tree(
        *(
            quick(partial(differentiate, loss_of(partial(by_scan, layer_of))))(arguments)
            for layer_of in (lambda x, layer: layer(x), plain)
        )
    )
