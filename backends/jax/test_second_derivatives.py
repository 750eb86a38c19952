"""Derivatives of gradients, in every form in which JAX takes them, beside those of autodiff.py and differences.

In float64, where rounding does not hide a wrong formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from backends.jax import CRMAAdapter, adapter_forward, residual_mixing, sinkhorn_projection
from backends.jax.autodiff import plain_adapter, plain_projection
from backends.jax.kernels.launch import interpreter

K = 5
ALL = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


def inputs(seed: int = 0, scale: float = 1.0) -> tuple[Any, ...]:
    return draw(2, 7, seed=seed), draw(3, 3, seed=seed, scale=scale), draw(seed=seed), draw(3, 2, 7, seed=seed)


def loss_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Not linear in y, so that derivatives of the forward pass count as well as those of the gradient."""
    return lambda *arguments: (jnp.sin(function(*arguments)) * draw(2, 7, seed=9)).sum()


def hessian(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(jax.hessian(loss_of(function), ALL))(*arguments)


def reverse_twice(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(jax.jacrev(jax.grad(loss_of(function), ALL), ALL))(*arguments)


def without_jit(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jacfwd(jax.grad(loss_of(function), ALL), ALL)(*arguments)


def under_remat(function: Callable[..., Any], *arguments: Any) -> Any:
    return hessian(jax.checkpoint(function), *arguments)


def under_vmap(function: Callable[..., Any], *arguments: Any) -> Any:
    batch = [jnp.stack([value, value + 1.0]) for value in arguments]
    both = jax.jit(jax.vmap(jax.hessian(loss_of(function), ALL)))(*batch)
    return jax.tree.map(lambda leaf: leaf[0], both)


def jvp_of_vjp(function: Callable[..., Any], *arguments: Any) -> Any:
    """Column by column, in x alone, and the other blocks as they are elsewhere."""
    whole = hessian(function, *arguments)
    gradient = jax.jit(lambda *v: jax.vjp(loss_of(function), *v)[1](jnp.ones(())))
    for index, value in enumerate(arguments):
        for place in np.ndindex(value.shape):
            step = [jnp.zeros_like(v).at[place].set(1.0) if k == index else jnp.zeros_like(v)
                    for k, v in enumerate(arguments)]  # fmt: skip
            column = jax.jvp(gradient, arguments, tuple(step))[1]
            for row, block in zip(whole, column, strict=True):
                np.testing.assert_allclose(row[index][(..., *place)], block, rtol=1e-9, atol=1e-11)
    return whole


def assert_same_tree(left: Any, right: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.abs(other).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def expected() -> Any:
    with jax.enable_x64(True):
        return hessian(partial(plain_adapter, iterations=K), *inputs())


FORMS = (hessian, reverse_twice, without_jit, under_remat, under_vmap, jvp_of_vjp)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_hessian_of_the_adapter_in_every_form(form: Any, expected: Any) -> None:
    assert_same_tree(form(partial(adapter_forward, iterations=K), *inputs()), expected)


def test_the_hessian_through_the_kernels(expected: Any) -> None:
    with interpreter():
        for form in (hessian, reverse_twice):
            assert_same_tree(form(partial(adapter_forward, iterations=K, kernels="pallas"), *inputs()), expected)


def test_the_hessian_is_the_difference_of_gradients() -> None:
    """Of the gradients that this backend gives, which conformance/ compares with the reference."""
    function, step = partial(adapter_forward, iterations=K), 1e-6
    gradient, arguments = jax.jit(jax.grad(loss_of(function), ALL)), inputs(seed=1)
    directions = [draw(*value.shape, seed=20 + k) for k, value in enumerate(arguments)]
    ahead, behind = (
        gradient(*(value + t * way for value, way in zip(arguments, directions, strict=True))) for t in (step, -step)
    )
    by_differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    product = jax.jvp(gradient, arguments, tuple(directions))[1]
    assert_same_tree(product, by_differences, rtol=1e-6, atol=1e-7)
    by_reverse = jax.grad(
        lambda v: sum((g * way).sum() for g, way in zip(gradient(*v), directions, strict=True))
    )(arguments)  # fmt: skip
    assert_same_tree(by_reverse, product)


@pytest.mark.parametrize("scale", [1.0, 400.0])  # beyond SCALED_RANGE the first derivative takes the other form
@pytest.mark.parametrize("kernels", ["jax", "pallas"])
def test_the_hessian_of_the_projection(scale: float, kernels: Any) -> None:
    logits, weight = draw(2, 3, 3, scale=scale), draw(2, 3, 3, seed=1)

    def twice(project: Any) -> Any:
        loss = lambda s: (jnp.sin(3.0 * project(s, K)) * weight).sum()  # noqa: E731
        return [jax.jit(f(jax.grad(loss)))(logits) for f in (jax.jacfwd, jax.jacrev)]

    with interpreter():
        for one, other in zip(twice(partial(sinkhorn_projection, kernels=kernels)), twice(plain_projection),
                              strict=True):  # fmt: skip
            assert np.isfinite(one).all()
            assert scale > 1 or np.abs(other).max() > 1e-2
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_third_derivatives() -> None:
    logits, weight = draw(3, 3), draw(3, 3, seed=1)
    third = [
        jax.jit(jax.jacfwd(jax.jacrev(jax.grad(lambda s, f=f: (jnp.sin(f(s, K)) * weight).sum()))))(logits)
        for f in (sinkhorn_projection, plain_projection)
    ]
    assert_same_tree(*third)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.clause("SINK-9")
def test_logits_that_are_not_finite_have_no_finite_second_derivative(bad: float) -> None:
    logits, weight = draw(2, 3, 3).at[1, 0, 2].set(bad), draw(2, 3, 3, seed=1)
    gradient = jax.grad(lambda s: (jnp.sin(sinkhorn_projection(s, K)) * weight).sum())
    for product in (
        jax.jvp(gradient, (logits,), (weight,))[1],
        jax.grad(lambda s: (gradient(s) * weight).sum())(logits),
    ):
        assert np.isnan(product[1]).all()
        assert np.isfinite(product[0]).all()


def test_residual_mixing_by_itself() -> None:
    x, logits, _, basis = inputs()
    mixing, strength = plain_projection(logits, K), jnp.asarray(0.02)

    def plain(x: Any, mixing: Any, strength: Any, basis: Any) -> Any:
        streams = jnp.einsum("...d,nrd->...nr", x, basis)
        moved = jnp.einsum("ij,...jr->...ir", mixing, streams) - streams
        return x + strength * jnp.einsum("...nr,nrd->...d", moved, basis)

    arguments = (x, mixing, strength, basis)
    assert_same_tree(hessian(residual_mixing, *arguments), hessian(plain, *arguments))


@pytest.mark.parametrize("remat", [False, True])
def test_through_a_scan_over_layers(remat: bool) -> None:
    layers, (x, *_) = 3, inputs()
    leaves = draw(layers, 3, 3), draw(layers), draw(layers, 3, 2, 7)

    def ours(x: Any, *leaves: Any) -> Any:
        step = lambda x, layer: (layer(x), None)  # noqa: E731
        prepared = CRMAAdapter(*leaves, iterations=K).prepared()
        return jax.lax.scan(jax.checkpoint(step) if remat else step, x, prepared)[0]

    def plain(x: Any, *leaves: Any) -> Any:
        for layer in range(layers):
            x = plain_adapter(x, *(leaf[layer] for leaf in leaves), iterations=K)
        return x

    directions = tuple(draw(*value.shape, seed=30 + k) for k, value in enumerate((x, *leaves)))
    for differentiate in (_forward_over_reverse, _reverse_over_reverse):
        assert_same_tree(*(differentiate(loss_of(f), (x, *leaves), directions) for f in (ours, plain)))


def _forward_over_reverse(loss: Any, arguments: Any, directions: Any) -> Any:
    return jax.jit(lambda *v: jax.jvp(jax.grad(loss, ALL), v, directions)[1])(*arguments)


def _reverse_over_reverse(loss: Any, arguments: Any, directions: Any) -> Any:
    def along(*values: Any) -> Any:
        return sum((g * way).sum() for g, way in zip(jax.grad(loss, ALL)(*values), directions, strict=True))

    return jax.jit(jax.grad(along, ALL))(*arguments)
