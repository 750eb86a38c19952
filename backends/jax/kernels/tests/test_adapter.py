"""CRMAAdapter with ``kernels="pallas"`` beside plain JAX, and how the choice is made and refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import reference
from backends import load_backend
from backends.jax import CRMAAdapter, adapter_forward, residual_mixing, sinkhorn_projection
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.kernels import sinkhorn_projection as kernels
from reference.errors import ConfigError, DeviceUnavailableError

CONFIG = reference.AdapterConfig(24, 3, 2, 3)


def adapters(layers: int) -> tuple[CRMAAdapter, CRMAAdapter]:
    plain = CRMAAdapter.init(CONFIG, 5, layers)
    plain = replace(plain, gate_logit=plain.gate_logit + 5.5)
    return plain, replace(plain, kernels="pallas")


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_same_tree(left: Any, right: Any) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.clause("MIX-1", "MIX-2", "GRAD-7")
def test_a_scan_over_a_stack_is_that_of_plain_jax() -> None:
    def loss(stack: CRMAAdapter, x: Any, cotangent: Any) -> Any:
        return (jax.lax.scan(lambda x, layer: (layer(x), None), x, stack.prepared())[0] * cotangent).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=QUICK)
    plain, pallas = (gradient(stack, draw(5, 24), draw(5, 24, seed=1)) for stack in adapters(3))
    assert_same_tree(pallas, plain)


@pytest.mark.clause("GRAD-7")
def test_vmap_over_layers_and_over_examples_is_that_of_plain_jax() -> None:
    """Per layer and per example: x is mapped twice, the parameters once."""

    def loss(layer: CRMAAdapter, x: Any, cotangent: Any) -> Any:
        return (layer(x) * cotangent).sum()

    each = jax.vmap(jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(None, 0, 0)), in_axes=(0, None, None))
    each = jax.jit(each, compiler_options=QUICK)
    plain, pallas = (each(stack, draw(2, 5, 24), draw(2, 5, 24, seed=1)) for stack in adapters(2))
    assert pallas[0].basis.shape == (2, 2, 3, 2, 24)
    assert_same_tree(pallas, plain)


def test_the_choice_is_no_leaf_and_stays() -> None:
    plain, pallas = adapters(2)
    assert len(jax.tree.leaves(pallas)) == 3
    assert jax.tree.map(lambda leaf: leaf, pallas).kernels == pallas.prepared().kernels == "pallas"
    assert plain.kernels == "auto"
    assert jax.tree.structure(plain) != jax.tree.structure(pallas)


@pytest.mark.clause("ERR-3")
def test_only_pallas_means_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(kernels, "sinkhorn_projection", lambda *arguments: calls.append(arguments))
    for choice in ("auto", "jax"):
        sinkhorn_projection(jnp.zeros((2, 2)), 1, choice)
    assert not calls
    sinkhorn_projection(jnp.zeros((2, 2)), 1, "pallas")
    assert len(calls) == 1


@pytest.mark.clause("ERR-2")
def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kernels: got 'triton'; allowed: 'auto', 'jax', 'pallas'"):
        adapter_forward(draw(24), draw(3, 3), draw(), draw(3, 2, 24), kernels="triton")  # type: ignore[arg-type]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="what is told to a machine without a GPU")
@pytest.mark.clause("ERR-3")
@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit])
def test_a_cpu_is_refused_unless_the_interpreter_is_asked_for(wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRMA_PALLAS_INTERPRET")
    with pytest.raises(DeviceUnavailableError, match=r"mix_logits: got an array on cpu.*kernels='jax'"):
        wrap(lambda s: sinkhorn_projection(s, 2, "pallas"))(jnp.zeros((2, 2)))
    with pytest.raises(DeviceUnavailableError, match=r"x: got an array on cpu.*CRMA_PALLAS_INTERPRET=1"):
        wrap(lambda x: residual_mixing(x, jnp.eye(3), jnp.float32(0.1), draw(3, 2, 24), "pallas"))(draw(24))
    with pytest.raises(DeviceUnavailableError):
        wrap(jax.grad(lambda s: sinkhorn_projection(s, 2, "pallas")[0, 0]))(jnp.zeros((2, 2)))


@pytest.mark.clause("BACK-2", "ERR-3")
def test_the_backend_says_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRMA_PALLAS_INTERPRET", raising=False)
    backend = load_backend("jax-pallas")
    on_gpu = jax.default_backend() == "gpu"
    assert backend.name == "jax-pallas"
    assert backend.device.startswith("cuda (" if on_gpu else "cpu (Pallas interpreter)")
    logits = np.asarray(draw(1, 2, 2))
    expected = reference.sinkhorn_projection(logits, 1)
    np.testing.assert_allclose(backend.sinkhorn_projection(logits, 1), expected, atol=1e-6)
    if not on_gpu:  # the interpreter is the backend's own
        with pytest.raises(DeviceUnavailableError):
            sinkhorn_projection(jnp.asarray(logits), 1, "pallas")
