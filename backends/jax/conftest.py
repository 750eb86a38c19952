"""Every test of this folder runs as in a program that forbids JAX to promote dtypes by itself."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _strict_promotion() -> Iterator[None]:
    """What fits strict promotion fits the standard one; the other way round it does not."""
    jax = pytest.importorskip("jax")
    with jax.numpy_dtype_promotion("strict"):
        yield
