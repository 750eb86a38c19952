"""How far the kernels are from plain PyTorch in float64, in parts of the bound of rounding: for tests and benches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.torch.residual_mixing import residual_mixing as plain_mixing

EPS = 2.0**-23
#: of what :func:`value_and_gradients` gives for residual mixing
NAMES = ("y", "x", "mixing", "strength", "basis")
Mixing = Callable[..., Tensor]


def inputs(leading: tuple[int, ...], d: int, n: int, rank: int, device: str) -> list[Tensor]:
    """x (*leading, d), M (n, n), alpha (1,) and A (n, rank, d) for residual mixing, in float32."""
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(*leading, d, generator=generator)
    mixing = torch.rand(n, n, generator=generator).softmax(0)
    basis = torch.randn(n, rank, d, generator=generator) / d**0.5
    return [value.to(device) for value in (x, mixing, torch.tensor([0.3]), basis)]


def random_cotangent(values: Sequence[Tensor]) -> Tensor:
    """Half along y - x: the gradient for alpha, a single sum, then cannot cancel to nothing."""
    x = values[0]
    return torch.randn_like(x) + (plain_mixing(*values) - x).sign()


def value_and_gradients(function: Mixing, values: Sequence[Any], cotangent: Tensor) -> list[Tensor]:
    """The value, and the gradient for each of ``values``, which are taken where they lie in memory."""
    leaves = [value.detach().requires_grad_() for value in values]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


def rounding_shares(function: Mixing, values: Sequence[Tensor], cotangent: Tensor) -> dict[str, float]:
    """By name of each result of residual mixing, its largest error against plain PyTorch in float64, over the a-priori
    bound of rounding in float32: the same sums, of absolute values. A random walk stays far below 1.

    What has the dtype of x may also be half a unit of that dtype off. A result of another shape, or a bound that zeros
    would keep, is infinite.
    """
    actual = value_and_gradients(function, values, cotangent)
    wide = [value.double() for value in values]
    expected = value_and_gradients(plain_mixing, wide, cotangent)
    x, mixing, strength, basis = (value.abs() for value in wide)
    # M + 2 in place of M: every entry of M - I is then at least as large as the absolute value of the true one
    mixer = mixing + 2 * torch.eye(len(mixing)).to(x)
    bounds = value_and_gradients(plain_mixing, [x, mixer, strength, basis], cotangent.abs())
    found = {}
    for name, left, right, bound in zip(NAMES, actual, expected, bounds, strict=True):
        unit = torch.finfo(left.dtype).eps / 2 * right.abs() if left.dtype.itemsize == 2 else 0.0
        most = EPS * float(bound.max())
        proves = left.shape == right.shape and (most < float(right.abs().max()) / 4 or not right.any())
        excess = ((left.double() - right).abs() - unit).clamp(min=0) if proves else torch.tensor(torch.inf)
        found[name] = float(excess.max()) / most if right.any() else float(excess.max())
    return found
