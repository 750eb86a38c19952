"""Which dtypes are taken, which are refused, and that no operation relies on JAX to promote by itself.

``conftest.py`` makes every test of this folder strict; here the results are those of the standard rules, to the bit.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import reference
from backends.jax import CRMAAdapter, adapter_forward, adapter_strength, residual_mixing, sinkhorn_projection
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.kernels.launch import interpreter
from reference.errors import CRMAError, DtypeError

REFUSED = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int8",
    "int32",
    "uint16",
    "bool",
    "complex64",
)
TAKEN = ("float32", "bfloat16", "float16", "float64")


def drawn(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((4, 9), (3, 3), (), (3, 2, 9)))


def in_each_place(dtype: str, kernels: Any) -> dict[str, Callable[[], Any]]:
    """Every function of the package with an array of ``dtype`` in every place, by the name of the argument."""
    x, logits, gate, basis = drawn()
    adapter = CRMAAdapter(jnp.asarray(logits), jnp.asarray(gate), jnp.asarray(basis), kernels=kernels)
    arguments = {"x": x, "mix_logits": logits, "gate_logit": gate, "basis": basis}
    mixing = {"x": x, "mixing": np.eye(3, dtype=np.float32), "strength": np.float32(0.1), "basis": basis}
    bad = {name: jnp.asarray(value).astype(dtype) for name, value in {**arguments, **mixing}.items()}
    calls: dict[str, Callable[[], Any]] = {
        "mix_logits": lambda: sinkhorn_projection(bad["mix_logits"], 3, kernels),
        "x": lambda: adapter(bad["x"]),
        "x, prepared": lambda: adapter.prepared()(bad["x"]),
        "gate_logit": lambda: adapter_strength(bad["gate_logit"], basis),
        "basis": lambda: adapter_strength(gate, bad["basis"]),
    }
    for name in arguments:
        calls[f"{name}, of adapter_forward"] = partial(
            adapter_forward, **arguments | {name: bad[name]}, kernels=kernels
        )
    for name in mixing:
        calls[f"{name}, of residual_mixing"] = partial(residual_mixing, **mixing | {name: bad[name]}, kernels=kernels)
    return calls


@pytest.mark.clause("MIX-10", "ERR-1", "ERR-2")
@pytest.mark.parametrize("kernels", ["auto", "pallas"])
@pytest.mark.parametrize("dtype", REFUSED)
def test_other_dtypes_are_refused_by_name(dtype: str, kernels: str) -> None:
    with interpreter():
        for place, call in in_each_place(dtype, kernels).items():
            for wrap in (call, jax.jit(call)):
                with pytest.raises(DtypeError, match=f"got dtype {dtype}; allowed: a float of 16 bits") as caught:
                    wrap()
                assert caught.value.field == place.partition(",")[0]
                assert isinstance(caught.value, TypeError)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", TAKEN)
@pytest.mark.parametrize("kernels", ["auto", "pallas"])
def test_strict_promotion_changes_no_bit(dtype: str, kernels: Any) -> None:
    """Value and gradients, x and parameters each in their own dtype, as strict and as JAX is by default."""
    with jax.enable_x64(dtype == "float64"), interpreter():
        x, *parameters = (jnp.asarray(value) for value in drawn())
        x, halves = x.astype(dtype), [value.astype(jnp.float16) for value in parameters]

        def value_and_gradients(*arguments: Any) -> Any:
            y, pull = jax.vjp(partial(adapter_forward, iterations=4, kernels=kernels), *arguments)
            return y, pull(jnp.cos(y))

        def results() -> list[np.ndarray]:
            arrays = []
            for each in (parameters, halves):
                y, gradients = jax.jit(value_and_gradients, compiler_options=QUICK)(x, *each)
                assert y.dtype == x.dtype
                assert [g.dtype for g in gradients] == [v.dtype for v in (x, *each)]
                arrays += [np.asarray(v) for v in (y, *gradients)]
            return arrays

        strict = results()
        with jax.numpy_dtype_promotion("standard"):
            standard = results()
    for one, other in zip(strict, standard, strict=True):
        assert np.abs(other.astype(np.float64)).max() > 1e-4
        np.testing.assert_array_equal(one, other)


@pytest.mark.clause("MIX-10")
def test_numbers_lists_and_numpy_arrays_are_what_jax_makes_of_them() -> None:
    x: Any = [1, 2, 3]
    logits: Any = [[0, 1], [2, 4]]
    gate: Any = 0
    basis: Any = [[[1.0, 0.0, 0.0]], [[0, 2, 0]]]
    expected = sinkhorn_projection(jnp.asarray(logits, jnp.float32))
    np.testing.assert_array_equal(sinkhorn_projection(logits), expected)
    by_numpy: Any = np.asarray(logits, np.float32)
    np.testing.assert_array_equal(sinkhorn_projection(by_numpy), expected)
    y = adapter_forward(x, logits, gate, basis)
    by_reference = reference.adapter_forward(x, reference.AdapterParameters(logits, gate, basis))
    assert (y.dtype, by_reference.dtype) == (jnp.float32, np.float64)
    np.testing.assert_allclose(y, by_reference, atol=1e-6)
    np.testing.assert_array_equal(adapter_strength(gate, basis), adapter_strength(jnp.zeros(()), jnp.asarray(basis)))


@pytest.mark.clause("MIX-10", "ERR-2")
@pytest.mark.parametrize("bad", [True, 1j, [[True]], [[1j]], "text", {"a": 1.0}, None])
def test_what_is_no_real_number_is_refused(bad: Any) -> None:
    with pytest.raises(DtypeError, match="mix_logits: got dtype"):
        sinkhorn_projection(bad)
    with pytest.raises(DtypeError, match="x: got dtype"):
        adapter_forward(bad, *drawn()[1:])


def test_an_adapter_of_labels_is_no_function_of_parameters() -> None:
    """optax calls a tree of labels if it can be called, and a CRMAAdapter can."""
    optax = pytest.importorskip("optax")
    adapter = CRMAAdapter.init(reference.AdapterConfig(16, 2, 2))
    labels = CRMAAdapter("mixing", "gate", "basis")  # type: ignore[arg-type]
    rates = {"mixing": optax.sgd(1.0), "gate": optax.sgd(2.0), "basis": optax.set_to_zero()}
    with pytest.raises(CRMAError, match="lambda _: labels"):
        optax.multi_transform(rates, labels).init(adapter)
    for given in (lambda _: labels, lambda tree: jax.tree.map(lambda _: "mixing", tree)):
        optimizer = optax.multi_transform(rates, given)
        state = optimizer.init(adapter)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, adapter), state, adapter)
        moved = optax.apply_updates(adapter, updates)
        assert isinstance(moved, CRMAAdapter)
        np.testing.assert_allclose(moved.mix_logits, adapter.mix_logits - 1.0)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.clause("GRAD-5", "GRAD-6")
@pytest.mark.parametrize(("of_basis", "of_x"), [(1e-9, 1e27), (2e-4, 1e27), (1e-4, 1e30), (1e8, 1e-5), (1e-8, 1.0)])
def test_the_gradient_of_a_small_basis_does_not_overflow(of_basis: float, of_x: float, strict: bool) -> None:
    """``1 / kappa^2`` does, for a basis far below 1, where the gradient fits. Within the note on range of spec/40."""
    x, logits, gate, basis = drawn()
    x, basis = of_x / np.linalg.norm(x) * x, of_basis / np.linalg.norm(basis) * basis
    cotangent = (np.cos(x / of_x) / 100).astype(np.float32)
    expected = reference.adapter_vjp(x, reference.AdapterParameters(logits, gate, basis), cotangent)
    with nullcontext() if strict else jax.numpy_dtype_promotion("standard"):
        gradients = jax.vjp(adapter_forward, x, logits, gate, basis)[1](jnp.asarray(cotangent))
    for actual, true in zip(gradients, expected, strict=True):
        assert np.abs(true).max() < 3e38
        assert np.abs(np.asarray(actual, np.float64) - true).max() <= 2e-5 * np.abs(true).max()
