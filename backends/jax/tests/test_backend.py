"""The backend as an object: devices, x64, and what it leaves alone. What it computes is checked by conformance/."""

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from backends.jax.backend import make_backend
from reference.errors import DeviceUnavailableError


def inputs(dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    x, *parameters = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 9), (3, 3), (), (3, 2, 9)))
    return [x.astype(dtype), *parameters]


@pytest.mark.clause("ERR-3", "BACK-2")
def test_a_missing_gpu_is_one_message_and_no_other_device() -> None:
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailableError, match="jax-cuda: got no such device") as caught:
        make_backend("jax-cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.clause("BACK-3", "MIX-10")
def test_x64_is_on_within_a_call_and_never_after_it() -> None:
    backend: Any = make_backend("jax-cpu")
    wide = inputs("float64")
    assert backend.adapter_forward(*wide, 3).dtype == np.float64
    assert backend.adapter_autodiff(*inputs(), inputs()[0], 3).basis.dtype == np.float32
    with pytest.raises(ValueError, match="iterations"):
        backend.adapter_forward(*wide, 0)
    assert not jax.config.jax_enable_x64
    gradients = backend.adapter_vjp(*wide, wide[0], 3)
    assert [gradient.dtype.name for gradient in gradients] == ["float64", "float32", "float32", "float32"]


@pytest.mark.clause("BACK-1", "BACK-4")
def test_attributes() -> None:
    backend = make_backend("jax-cpu")
    assert (backend.name, backend.device) == ("jax-cpu", "cpu")
    assert backend.version.startswith(f"jax {jax.__version__}")


@pytest.mark.clause("BACK-6")
def test_autodiff_has_the_gradients_of_the_closed_forms() -> None:
    backend: Any = make_backend("jax-cpu")
    x, *parameters = inputs()
    closed = backend.adapter_vjp(x, *parameters, x, 4)
    by_autodiff = backend.adapter_autodiff(x, *parameters, x, 4)
    for left, right in zip(closed, by_autodiff, strict=True):
        assert np.abs(right).max() > 1e-3
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.clause("BACK-3")
def test_what_was_compiled_is_forgotten_after_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And compiled again with the same results."""
    monkeypatch.setattr("backends.jax.backend.KEPT_SHAPES", 2)
    cleared, clear = [], jax.clear_caches

    def clear_and_tell() -> None:
        cleared.append(True)
        clear()

    monkeypatch.setattr(jax, "clear_caches", clear_and_tell)
    backend, rng = make_backend("jax-cpu"), np.random.default_rng(0)
    logits = [rng.standard_normal((n, n)).astype(np.float32) for n in (1, 2, 3, 4)]
    first, again = ([backend.sinkhorn_projection(value, 2) for value in logits] for _ in range(2))
    assert cleared
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
