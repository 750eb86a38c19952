"""The kernels over tokens against the plain torch function, on sizes that fill no block."""

from __future__ import annotations

import importlib

import pytest
import torch

from backends.torch.residual_mixing import residual_mixing as plain_mixing
from reference.errors import ConfigError, ShapeError

EPS = 2.0**-23
SIZES = [
    ((5,), 19, 3, 2),
    ((2, 3), 40, 1, 1),
    ((1030,), 33, 3, 5),
    ((7,), 300, 8, 4),
    ((2, 1, 3), 131, 5, 7),
    ((17,), 530, 64, 8),
]


def inputs(leading, d, n, rank, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(*leading, d, generator=generator).to(device, dtype)
    mixing = torch.rand(n, n, generator=generator).softmax(0).to(device)
    basis = torch.randn(n, rank, d, generator=generator).to(device) / d**0.5
    return [x, mixing, torch.tensor([0.3], device=device), basis]


def value_and_gradients(mix, values, cotangent):
    leaves = [value.clone().requires_grad_() for value in values]
    y = mix(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


@pytest.fixture
def small_blocks(kernels, monkeypatch):
    """16 tokens and 16 places at a time, and three parts of sums over tokens: no loop is entered only once."""
    launch = importlib.import_module("backends.torch.kernels.launch")
    module = importlib.import_module("backends.torch.kernels.residual_mixing")

    def blocks(x, width):
        return launch.Blocks(16, 16, 16, launch.power_of_two(width, 16), *launch._splits(len(x), 16, 3))

    monkeypatch.setattr(module, "blocks_for", blocks)


def random_cotangent(values):
    """Half along y - x: the gradient for alpha, a single sum, then cannot cancel to nothing."""
    x = values[0]
    return torch.randn_like(x) + (plain_mixing(*values) - x).sign()


def assert_agree(kernels, values, cotangent):
    """To a part of the a-priori bound of rounding: the same sums, of absolute values. A random walk stays far below."""
    actual = value_and_gradients(kernels.residual_mixing, values, cotangent)
    expected = value_and_gradients(plain_mixing, [value.double() for value in values], cotangent)
    x, mixing, strength, basis = (value.double().abs() for value in values)
    # M + 2 in place of M: every entry of M - I is then at least as large as the absolute value of the true one
    bounds = value_and_gradients(
        plain_mixing, [x, mixing + 2 * torch.eye(len(mixing)).to(x), strength, basis], cotangent.abs()
    )
    for name, left, right, bound in zip(
        ("y", "x", "mixing", "strength", "basis"), actual, expected, bounds, strict=True
    ):
        assert left.shape == right.shape, name
        tolerance = EPS * float(bound.max())
        assert tolerance < float(right.abs().max()) / 4 or not right.any(), f"{name}: zero would pass"
        assert float((left.double() - right).abs().max()) <= tolerance, name


@pytest.mark.clause("MIX-2", "MIX-3", "GRAD-4", "GRAD-5", "GRAD-7")
@pytest.mark.parametrize(("leading", "d", "n", "rank"), SIZES)
def test_agrees_with_the_plain_function(kernels, device, leading, d, n, rank):
    values = inputs(leading, d, n, rank, device)
    assert_agree(kernels, values, random_cotangent(values))


@pytest.mark.clause("MIX-2", "GRAD-5", "GRAD-7")
@pytest.mark.parametrize(("leading", "d", "n", "rank"), [((50,), 19, 3, 2), ((161,), 40, 5, 7)])
def test_agrees_in_many_blocks(kernels, device, small_blocks, leading, d, n, rank):
    values = inputs(leading, d, n, rank, device)
    assert_agree(kernels, values, random_cotangent(values))


@pytest.mark.clause("BACK-3", "GRAD-7")
def test_same_inputs_give_the_same_bits(kernels, device, small_blocks):
    values = inputs((161,), 40, 3, 3, device)
    cotangent = torch.randn_like(values[0])
    first = value_and_gradients(kernels.residual_mixing, values, cotangent)
    second = value_and_gradients(kernels.residual_mixing, values, cotangent)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_float32_inside_and_rounded_once(kernels, device, dtype):
    """On the CPU to the bit; a GPU multiplies otherwise for 16-bit x, so there to one rounding."""
    values = inputs((65,), 37, 3, 4, device, dtype)
    cotangent = torch.randn_like(values[0])
    narrow = value_and_gradients(kernels.residual_mixing, values, cotangent)
    wide = value_and_gradients(kernels.residual_mixing, [values[0].float(), *values[1:]], cotangent.float())
    for left, right in zip(narrow[:2], wide[:2], strict=True):
        assert left.dtype == dtype
        if kernels.INTERPRETED:
            assert torch.equal(left, right.to(dtype))
        else:
            torch.testing.assert_close(left, right.to(dtype))
    for left, right in zip(narrow[2:], wide[2:], strict=True):
        assert left.dtype == torch.float32
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.clause("MIX-11")
def test_a_token_that_is_not_finite_touches_no_other(kernels, device):
    values = inputs((5,), 19, 3, 2, device)
    clean = kernels.residual_mixing(*values)
    values[0][2, 1] = float("nan")
    y = kernels.residual_mixing(*values)
    assert y[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], clean[others])


@pytest.mark.clause("MIX-1", "GRAD-7")
@pytest.mark.parametrize("leading", [(0,), (2, 0, 3)])
def test_no_tokens_give_zero_gradients(kernels, device, leading):
    values = inputs(leading, 19, 3, 2, device)
    y, grad_x, *grads = value_and_gradients(kernels.residual_mixing, values, torch.empty_like(values[0]))
    assert y.shape == grad_x.shape == (*leading, 19)
    assert not any(grad.any() for grad in grads)


@pytest.mark.clause("BACK-3", "MIX-10")
def test_strided_x_is_read_by_index_and_nothing_is_modified(kernels, device):
    values = inputs((6,), 20, 2, 3, device)
    before = [value.clone() for value in values]
    strided = values[0].T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(kernels.residual_mixing(strided, *values[1:]), kernels.residual_mixing(*values))
    assert all(torch.equal(left, right) for left, right in zip(values, before, strict=True))


@pytest.mark.clause("MIX-8")
def test_identity_and_a_closed_gate_leave_every_bit(kernels, device):
    x, mixing, strength, basis = inputs((6,), 20, 2, 3, device)
    assert torch.equal(kernels.residual_mixing(x, torch.eye(2, device=device), strength, basis), x)
    assert torch.equal(kernels.residual_mixing(x, mixing, 0 * strength, basis), x)


@pytest.mark.clause("MIX-1", "MIX-4", "ERR-2")
def test_wrong_inputs_are_refused(kernels, device):
    x, mixing, strength, basis = inputs((6,), 20, 2, 3, device)
    with pytest.raises(ShapeError, match="one gate per layer"):
        kernels.residual_mixing(x, mixing, strength.expand(2), basis)
    with pytest.raises(ShapeError, match="hidden axis"):
        kernels.residual_mixing(x[:, :19], mixing, strength, basis)
    with pytest.raises(ConfigError, match="at most 64 and 512"):
        kernels.residual_mixing(*inputs((1,), 520, 64, 9, device))


@pytest.mark.clause("GRAD-7")
def test_operators_are_registered_as_torch_asks(kernels, device):
    values = inputs((4,), 9, 2, 2, device)
    leaves = [value.clone().requires_grad_() for value in values]
    torch.library.opcheck(torch.ops.crma.residual_mixing_triton.default, tuple(leaves))
    y, streams = torch.ops.crma.residual_mixing_triton(*values)
    arguments = (y, values[0], streams, *values[1:])
    torch.library.opcheck(torch.ops.crma.residual_mixing_triton_backward.default, arguments)
    wide = [value.double().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(kernels.residual_mixing, wide)


@pytest.mark.clause("GRAD-7")
def test_compiles_without_a_break(kernels, device):
    leaves = [value.requires_grad_() for value in inputs((4,), 9, 2, 2, device)]
    compiled = torch.compile(kernels.residual_mixing, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(kernels.residual_mixing(*leaves).square().sum(), leaves)
    traced = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    assert all(torch.equal(left, right) for left, right in zip(eager, traced, strict=True))
