"""A-GEM's projection against its definition. Source: as in ``a_gem.py``."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.methods.a_gem import projected


def pair(seed: int) -> tuple[list[Any], list[Any]]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (7,), ())
    first, second = ([torch.randn(shape, generator=draw) for shape in shapes] for _ in range(2))
    return first, second


def flat(tensors: list[Any]) -> Any:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_gradient_that_does_not_raise_the_loss_on_the_memory(seed):
    """Equation 11; the projection onto a half-space: nearest, orthogonal to g_ref where it moves, itself elsewhere."""
    gradients, of_memory = pair(seed)
    found, own, reference = flat(projected(gradients, of_memory)), flat(gradients), flat(of_memory)
    if own @ reference >= 0:
        assert torch.equal(found, own)
        return
    assert abs(float(found @ reference)) <= 1e-6 * float(own.norm() * reference.norm())
    moved = found - own
    torch.testing.assert_close(moved / moved.norm(), reference / reference.norm(), rtol=1e-5, atol=1e-6)


def test_both_cases_occur_and_a_memory_without_a_gradient_changes_nothing():
    assert {bool(flat(a) @ flat(b) >= 0) for a, b in map(pair, range(12))} == {True, False}
    gradients, _ = pair(0)
    assert projected(gradients, [torch.zeros_like(g) for g in gradients]) == gradients
