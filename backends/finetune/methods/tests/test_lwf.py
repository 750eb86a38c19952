"""Distillation: cases known by hand, and the gradient in closed form."""

import math

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.methods.lwf import distillation_loss
from reference.errors import ShapeError


def random_logits(rows: int = 5, classes: int = 7, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    new, old = 3 * torch.randn(2, rows, classes, generator=generator)
    return new.requires_grad_(), old


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_equal_logits_give_the_entropy_of_the_softened_old_answers_and_no_gradient(temperature):
    _, old = random_logits(seed=1)
    new = old.clone().requires_grad_()
    loss = distillation_loss(new, old, temperature)
    softened = torch.distributions.Categorical(logits=old.double() / temperature)
    torch.testing.assert_close(loss.double(), softened.entropy().sum(), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.abs().max() <= 1e-7


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_gradient_is_the_difference_of_the_softened_answers_over_the_temperature(temperature):
    new, old = random_logits(seed=2)
    (gradient,) = torch.autograd.grad(distillation_loss(new, old, temperature), new)
    expected = ((new / temperature).softmax(-1) - (old / temperature).softmax(-1)) / temperature
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-5, atol=1e-7)


def test_two_classes_by_hand():
    """T = 2: logits 2 ln 3 and 0 soften to 3/4 and 1/4, and 2 ln 4 and 0 to 4/5 and 1/5."""
    old, new = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[2 * math.log(4), 0.0]])
    expected = -(3 / 4 * math.log(4 / 5) + 1 / 4 * math.log(1 / 5))
    assert float(distillation_loss(new, old)) == pytest.approx(expected, rel=1e-6)
    assert float(distillation_loss(new.repeat(3, 1), old.repeat(3, 1))) == pytest.approx(3 * expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits_stay_exact(scale):
    new = torch.tensor([[scale, 0.0, 3.0]], requires_grad=True)
    old = torch.tensor([[0.0, scale, 3.0]])
    loss = distillation_loss(new, old)
    assert loss.item() == pytest.approx(5000 if scale > 0 else 5000 / (1 + math.exp(1.5)), rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0.05


def test_sixteen_bit_logits_are_softened_in_float32():
    new, old = (logits.detach().bfloat16() for logits in random_logits(seed=5))
    loss = distillation_loss(new, old)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(new.float(), old.float()), rtol=0, atol=0)


def test_the_old_model_gets_no_gradient():
    new, old = random_logits(seed=6)
    loss = distillation_loss(new, old.requires_grad_())
    assert torch.autograd.grad(loss, old, allow_unused=True) == (None,)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="old_logits"):
        distillation_loss(torch.zeros(3, 4), torch.zeros(2, 4))
