"""CRMAAdapter in somebody's training code: jit, grad, vmap, scan over layers, remat, shard_map, x64.

What it computes is checked by conformance/.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

import reference
from backends.jax import CRMAAdapter, adapter_forward, adapter_strength, residual_mixing
from backends.jax.autodiff import plain_adapter
from reference.errors import ConfigError, ShapeError

CONFIG = reference.AdapterConfig(24, 3, 2, 7)


def draw(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def make(layers: int | None = None, gate: float = 0.5) -> CRMAAdapter:
    adapter = CRMAAdapter.init(CONFIG, 5, layers)
    return jax.tree.map(lambda leaf: leaf + 0 if leaf.ndim > 1 else jnp.full_like(leaf, gate), adapter)


def parameters_of(adapter: CRMAAdapter) -> reference.AdapterParameters:
    leaves = (adapter.mix_logits, adapter.gate_logit, adapter.basis)
    return reference.AdapterParameters(*(np.asarray(leaf) for leaf in leaves))


def loss(adapter: CRMAAdapter, x: Any, cotangent: Any) -> Any:
    return (adapter(x) * cotangent).sum()


def assert_same_tree(left: Any, right: Any, atol: float = 2e-6) -> None:
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    assert pairs
    for one, other in pairs:
        assert np.abs(np.asarray(other)).max() > 20 * atol
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("dtype", "unit"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
@pytest.mark.clause("MIX-10")
def test_output_has_the_dtype_of_x_and_is_rounded_once(dtype: Any, unit: float) -> None:
    adapter, x = make(), draw(5, 7, 24).astype(dtype)
    y = jax.jit(lambda a, v: a(v))(adapter, x)
    wide = np.asarray(x).astype(np.float64)
    expected = reference.adapter_forward(wide, parameters_of(adapter), 7)
    assert y.dtype == dtype
    assert np.abs(expected - wide).max() > 0.1
    np.testing.assert_allclose(np.asarray(y).astype(np.float64), expected, rtol=unit, atol=2e-6)


@pytest.mark.clause("GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7")
def test_every_input_gets_the_gradient_of_the_reference() -> None:
    adapter, x, cotangent = make(), draw(5, 7, 24), draw(5, 7, 24, seed=1)
    by_adapter, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(adapter, x, cotangent)
    expected = reference.adapter_vjp(x, parameters_of(adapter), cotangent, 7)
    actual = (by_x, by_adapter.mix_logits, by_adapter.gate_logit, by_adapter.basis)
    for value, gradient in zip(actual, expected, strict=True):
        assert np.abs(value - gradient).max() <= 2e-5 * np.abs(gradient).max()


@pytest.mark.clause("GRAD-6")
@pytest.mark.parametrize("gate", [-60.0, 0.3, 60.0])
def test_gradient_of_an_open_and_of_a_shut_gate_keeps_its_digits(gate: float) -> None:
    adapter, x, cotangent = make(gate=gate), draw(5, 24), draw(5, 24, seed=1)
    expected = reference.adapter_vjp(x, parameters_of(adapter), cotangent, 7).gate_logit
    assert expected != 0
    np.testing.assert_allclose(jax.grad(loss)(adapter, x, cotangent).gate_logit, expected, rtol=1e-4)


@pytest.mark.clause("GRAD-5", "GRAD-6")
def test_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        inputs = draw(4, 9, dtype=jnp.float64), draw(3, 3), jnp.float64(0.4), draw(3, 2, 9)
        wide = tuple(value.astype(jnp.float64) for value in inputs)
        check_grads(partial(adapter_forward, iterations=3), wide, order=1, modes=["rev"], rtol=1e-6, atol=1e-7)
        check_grads(adapter_strength, wide[2:], order=2, modes=["fwd", "rev"], rtol=1e-6, atol=1e-7)
        mixed, pull = jax.vjp(partial(adapter_forward, iterations=3), *inputs)  # x in float64, parameters in float32
        assert mixed.dtype == jnp.float64
        assert [gradient.dtype for gradient in pull(mixed)] == [value.dtype for value in inputs]


@pytest.mark.clause("GRAD-7")
def test_per_example_gradients_are_the_summands_of_the_batch() -> None:
    adapter, x, cotangent = make(), draw(6, 5, 24), draw(6, 5, 24, seed=1)
    each = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(adapter, x, cotangent)
    assert each.basis.shape == (6, 3, 2, 24)
    together = jax.grad(loss)(adapter, x, cotangent)
    assert_same_tree(jax.tree.map(lambda leaf: leaf.sum(0), each), together, atol=1e-5)


@pytest.mark.clause("MIX-1", "GRAD-7")
@pytest.mark.parametrize("way", ["scan", "prepared", "remat"])
def test_a_stack_is_its_layers_one_after_the_other(way: str) -> None:
    stack, x, cotangent = make(layers=4), draw(5, 24), draw(5, 24, seed=1)

    def layer_by_layer(stack: CRMAAdapter, x: Any) -> Any:
        for k in range(4):
            x = jax.tree.map(lambda leaf, k=k: leaf[k], stack)(x)
        return x

    def by_scan(stack: CRMAAdapter, x: Any) -> Any:
        step = lambda x, layer: (layer(x), None)  # noqa: E731
        layers = stack.prepared() if way == "prepared" else stack
        return jax.lax.scan(jax.checkpoint(step) if way == "remat" else step, x, layers)[0]

    np.testing.assert_allclose(by_scan(stack, x), layer_by_layer(stack, x), atol=2e-6)
    actual, expected = (
        jax.jit(jax.grad(lambda s, x, f=f: (f(s, x) * cotangent).sum(), argnums=(0, 1)))(stack, x)
        for f in (by_scan, layer_by_layer)
    )
    assert_same_tree(actual, expected)


def test_vmap_over_a_stack_is_each_layer_on_its_own() -> None:
    stack, x = make(layers=3), draw(3, 5, 24)
    mapped = jax.vmap(lambda layer, tokens: layer(tokens))(stack, x)
    for k in range(3):
        np.testing.assert_allclose(mapped[k], jax.tree.map(lambda leaf, k=k: leaf[k], stack)(x[k]), atol=2e-6)


def test_it_is_a_pytree_whose_iterations_are_no_leaf() -> None:
    adapter = make()
    leaves, structure = jax.tree.flatten(adapter)
    assert [leaf.shape for leaf in leaves] == [(3, 3), (), (3, 2, 24)]
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert jax.tree.unflatten(structure, leaves).iterations == 7


@pytest.mark.clause("INIT-1", "INIT-4")
def test_start_values_are_those_of_the_reference() -> None:
    third = jax.tree.map(lambda leaf: leaf[2], CRMAAdapter.init(CONFIG, 5, 4))
    for seed, layer in ((5, make()), (np.random.default_rng([5, 2]), third)):
        expected = reference.init_parameters(CONFIG, seed)
        np.testing.assert_array_equal(layer.basis, expected.basis.astype(np.float32))
        np.testing.assert_array_equal(layer.mix_logits, expected.mix_logits.astype(np.float32))


def test_forward_mode_is_refused_and_the_plain_twin_has_it() -> None:
    adapter, x, direction, cotangent = make(), draw(5, 24), draw(5, 24, seed=1), draw(5, 24, seed=2)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(adapter, (x,), (direction,))
    leaves = jax.tree.leaves(adapter)
    steps = [draw(*leaf.shape, seed=k) for k, leaf in enumerate(leaves)]
    y, tangent = jax.jvp(partial(plain_adapter, iterations=7), (x, *leaves), (direction, *steps))
    np.testing.assert_allclose(y, adapter(x), atol=2e-6)
    gradients = jax.tree.leaves(jax.grad(loss, argnums=(1, 0))(adapter, x, cotangent))
    by_reverse = sum(float((g * step).sum()) for g, step in zip(gradients, (direction, *steps), strict=True))
    np.testing.assert_allclose((tangent * cotangent).sum(), by_reverse, rtol=1e-3)


@pytest.mark.clause("MIX-10")
def test_the_dtype_of_x_does_not_change_the_gradients_of_float32_parameters() -> None:
    adapter, x, cotangent = make(), draw(5, 24).astype(jnp.bfloat16), draw(5, 24, seed=1).astype(jnp.bfloat16)
    _, pull = jax.vjp(lambda a, v: a(v), adapter, x)
    by_adapter, by_x = pull(cotangent)
    assert by_x.dtype == jnp.bfloat16
    wide = jax.grad(loss)(adapter, x.astype(jnp.float32), cotangent.astype(jnp.float32))
    assert_same_tree(by_adapter, wide)


@pytest.mark.clause("MIX-6", "MIX-11")
@pytest.mark.parametrize("spoilt", ["zero basis", "nan in the basis", "nan gate"])
def test_what_cannot_be_used_gives_nan(spoilt: str) -> None:
    adapter = make()
    gate = jnp.float32(np.nan) if spoilt == "nan gate" else adapter.gate_logit
    basis = {"zero basis": adapter.basis * 0, "nan gate": adapter.basis}.get(spoilt, adapter.basis.at[1].set(np.nan))
    assert np.isnan(adapter_forward(draw(5, 24), adapter.mix_logits, gate, basis)).all()


@pytest.mark.clause("MIX-1", "MIX-4", "ERR-2")
def test_mistakes_are_named() -> None:
    adapter = make()
    with pytest.raises(ShapeError, match=r"x: got \(2, 23\)"):
        adapter(jnp.zeros((2, 23)))
    with pytest.raises(ShapeError, match="one gate per layer"):
        residual_mixing(jnp.zeros(24), jnp.eye(3), jnp.zeros(3), adapter.basis)
    with pytest.raises(ShapeError, match=r"jax\.lax\.scan"):
        make(layers=2)(jnp.zeros(24))
    with pytest.raises(ConfigError, match=r"streams \* rank"):
        CRMAAdapter.init(reference.AdapterConfig(8))
    with pytest.raises(ShapeError, match="basis"):
        adapter_strength(jnp.zeros(()), jnp.ones((2, 8)))


def test_four_devices_give_what_one_gives() -> None:
    """shard_map with and without its check of varying axes, and shardings that jit spreads; needs its own process."""
    flags = "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    root = Path(__file__).parents[3]
    program = [sys.executable, "-m", "backends.jax.tests._four_devices"]
    finished = subprocess.run(program, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split() == ["4", "devices:", "same"]


def test_few_tokens_have_the_results_and_gradients_of_many():
    """Streams are mixed for each of few tokens, directions once for many: one formula."""
    rng = np.random.default_rng(12)
    shapes = (50, 8), (2, 2), (), (2, 2, 8)
    x, mixing, strength, basis = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    upstream = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def pulled(rows):
        y, pull_back = jax.vjp(residual_mixing, x[rows], mixing, strength, basis)
        return y, *pull_back(upstream[rows])

    whole = pulled(slice(None))
    parts = list(zip(*(pulled(slice(first, first + 10)) for first in range(0, 50, 10)), strict=True))
    joined = [np.concatenate(each) for each in parts[:2]] + [np.sum(each, axis=0) for each in parts[2:]]
    for found, expected in zip(joined, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
