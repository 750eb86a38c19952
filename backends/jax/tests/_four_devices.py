"""Run by test_adapter.py in a process of its own: four host devices must give what one gives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from backends.jax import CRMAAdapter, sinkhorn_projection
from reference import AdapterConfig

Gradient = Callable[[CRMAAdapter, jax.Array], Any]


def main() -> None:
    adapter = CRMAAdapter.init(AdapterConfig(24, 3, 2))
    adapter = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.float32(1.0), adapter)
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.standard_normal((8, 5, 24)), jnp.float32) for _ in range(2))
    logits, upstream = (jnp.asarray(rng.standard_normal((8, 4, 4)), jnp.float32) for _ in range(2))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("data")

    def gradient_of(apply: Callable[[CRMAAdapter, jax.Array], jax.Array]) -> Gradient:
        return jax.jit(jax.grad(lambda a, v: (apply(a, v) * cotangent).sum(), argnums=(0, 1)))

    def summed(a: CRMAAdapter, v: jax.Array, c: jax.Array) -> CRMAAdapter:
        """A gradient taken inside shard_map: parameters are the same everywhere, so JAX adds it up over devices."""
        return jax.grad(lambda a: (a(v) * c).sum())(a)

    expected, expected_gradients = adapter(x), gradient_of(lambda a, v: a(v))(adapter, x)
    for check_vma in (True, False):
        by_device = jax.shard_map(
            lambda a, v: a(v), mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=check_vma
        )
        assert_same(by_device(adapter, x), expected)
        assert_same(gradient_of(by_device)(adapter, x), expected_gradients)
    inside = jax.shard_map(summed, mesh=mesh, in_specs=(whole, split, split), out_specs=whole)
    assert_same(jax.jit(inside)(adapter, x, cotangent), expected_gradients[0])

    def product(apply: Callable[[CRMAAdapter, jax.Array], jax.Array]) -> Any:
        """Of the Hessian and a direction, backwards over backwards."""
        slope = lambda a, v: jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, gradient_of(apply)(a, v)))  # noqa: E731
        return jax.jit(jax.grad(slope, argnums=(0, 1)))(adapter, x)

    assert_same(product(by_device), product(lambda a, v: a(v)), atol=2e-5)

    spread = jax.device_put(x, NamedSharding(mesh, split))
    assert_same(gradient_of(lambda a, v: a(v))(adapter, spread), expected_gradients)

    project = jax.shard_map(sinkhorn_projection, mesh=mesh, in_specs=split, out_specs=split)
    for values in (logits, logits.at[3].multiply(100.0)):  # one device needs the logarithmic form, the others do not
        assert_same(project(values), sinkhorn_projection(values))
        actual, alone = (jax.vjp(f, values)[1](upstream)[0] for f in (project, sinkhorn_projection))
        assert_same(actual, alone, atol=2e-5)
    print(f"{jax.device_count()} devices: same")


def assert_same(actual: Any, expected: Any, atol: float = 2e-6) -> None:
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=atol)


if __name__ == "__main__":
    main()
