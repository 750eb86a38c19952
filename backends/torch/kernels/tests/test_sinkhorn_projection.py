"""The projection kernels against the plain torch function in float64, on sizes that fill no block."""

from __future__ import annotations

import importlib

import pytest
import torch

from backends.torch.sinkhorn_projection import sinkhorn_projection as plain_projection
from reference.errors import ConfigError, ShapeError

EPS = 2.0**-23


def both(kernels, logits, cotangent, iterations):
    """M and S' of the kernel, and of the plain function in float64."""
    results = []
    for project, values in ((kernels.sinkhorn_projection, logits), (plain_projection, logits.double())):
        leaf = values.clone().requires_grad_()
        mixing = project(leaf, iterations)
        mixing.backward(cotangent.to(mixing.dtype))
        results.append((mixing.detach(), leaf.grad))
    return results


@pytest.mark.clause("SINK-1", "SINK-3", "SINK-5", "GRAD-1", "GRAD-3")
@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3, 3), (2, 3, 5, 5), (3, 7, 7), (12, 12), (2, 17, 17), (64, 64)])
def test_agrees_with_the_plain_function(kernels, device, shape, iterations):
    generator = torch.Generator().manual_seed(shape[-1])
    logits, cotangent = (
        torch.randn(2, *shape, generator=generator) * torch.tensor([3.0, 1.0]).view(2, *[1] * len(shape))
    ).to(device)
    (mixing, grad), (expected, expected_grad) = both(kernels, logits, cotangent, iterations)
    condition = float(logits.max() - logits.min()) + 1
    assert mixing.dtype == torch.float32
    torch.testing.assert_close(mixing.double(), expected, rtol=0, atol=16 * EPS * condition)
    torch.testing.assert_close(
        grad.double(), expected_grad, rtol=0, atol=32 * EPS * condition * float(cotangent.abs().max())
    )
    for axis in (-1, -2):
        sums = mixing.double().sum(axis)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=5e-7 * max(1, shape[-1] / 16))


@pytest.mark.clause("SINK-3", "SINK-5")
@pytest.mark.parametrize("exponent", [8, 30, 120])
def test_agrees_at_the_magnitudes_of_the_lattice(kernels, device, exponent):
    """Integers times 2^120 with a permutation of zeros, plus an integer per row, which the row step takes off."""
    generator = torch.Generator().manual_seed(exponent)
    integers = torch.randint(-8, 1, (4, 6, 6), generator=generator).float()
    zeros = torch.eye(6)[torch.randperm(6, generator=generator)]
    rows = torch.randint(-8, 9, (4, 6, 1), generator=generator)
    logits = (2.0**exponent * ((1 - zeros) * integers + rows)).to(device)
    cotangent = torch.randn(4, 6, 6, generator=generator).to(device)
    (mixing, grad), (expected, expected_grad) = both(kernels, logits, cotangent, 20)
    torch.testing.assert_close(mixing.double(), expected, rtol=0, atol=16 * EPS)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=32 * EPS * 4)


@pytest.mark.clause("SINK-1", "BACK-3")
def test_each_matrix_is_its_own_whatever_the_block(kernels, device, monkeypatch):
    """Nine matrices in one program, or in blocks of two with the last half empty: the same bits."""
    logits, cotangent = torch.randn(2, 9, 3, 3, device=device)
    (one, one_grad), _ = both(kernels, logits, cotangent, 3)
    monkeypatch.setattr(importlib.import_module("backends.torch.kernels.sinkhorn_projection"), "ENTRIES", 32)
    (many, many_grad), _ = both(kernels, logits, cotangent, 3)
    assert torch.equal(one, many)
    assert torch.equal(one_grad, many_grad)


@pytest.mark.clause("GRAD-2")
def test_first_of_equal_row_sums_takes_the_gradient(kernels, device):
    block = 1024.0 * torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    logits = torch.full((4, 4), -4096.0)
    logits[:2, :2] = logits[2:, 2:] = block
    cotangent = torch.randn(4, 4, generator=torch.Generator().manual_seed(4))
    (_, grad), (_, expected) = both(kernels, logits.to(device), cotangent.to(device), 1)
    exchange = [2, 3, 0, 1]
    last = plain_gradient(logits, cotangent[exchange][:, exchange])[exchange][:, exchange]
    assert (last - expected.cpu()).abs().max() > 1e-2
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=1e-6)


def plain_gradient(logits, cotangent):
    leaf = logits.double().requires_grad_()
    plain_projection(leaf, 1).backward(cotangent.double())
    return leaf.grad


@pytest.mark.clause("SINK-9")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_matrix_that_is_not_finite_is_nan_throughout_and_alone(kernels, device, bad):
    logits = torch.randn(3, 5, 5, device=device)
    clean = kernels.sinkhorn_projection(logits, 3)
    logits[1, 4, 2] = bad
    logits.requires_grad_()
    mixing = kernels.sinkhorn_projection(logits, 3)
    (grad,) = torch.autograd.grad(mixing, logits, torch.randn_like(mixing))
    assert mixing[1].isnan().all()
    assert grad[1].isnan().all()
    assert torch.equal(mixing[[0, 2]], clean[[0, 2]])
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.clause("SINK-1", "BACK-1")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_empty_batches(kernels, device, dtype):
    logits = torch.randn(2, 0, 3, 3, device=device, dtype=dtype, requires_grad=True)
    mixing = kernels.sinkhorn_projection(logits)
    (grad,) = torch.autograd.grad(mixing.sum(), logits)
    assert mixing.shape == logits.shape
    assert mixing.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype


@pytest.mark.clause("SINK-1", "SINK-2", "ERR-2")
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_wrong_shapes_are_refused(kernels, device, shape):
    with pytest.raises(ShapeError, match="mix_logits"):
        kernels.sinkhorn_projection(torch.zeros(shape, device=device))


@pytest.mark.clause("SINK-2", "ERR-2")
def test_wrong_settings_are_refused(kernels, device):
    with pytest.raises(ConfigError, match="iterations"):
        kernels.sinkhorn_projection(torch.zeros(2, 2, device=device), 0)
    with pytest.raises(ConfigError, match="at most 64"):
        kernels.sinkhorn_projection(torch.zeros(65, 65, device=device))


@pytest.mark.clause("GRAD-1")
def test_operators_are_registered_as_torch_asks(kernels, device):
    """Schema, fake kernels and autograd registration, as ``torch.compile`` uses them; the gradient by differences."""
    logits = torch.randn(2, 3, 3, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.crma.sinkhorn_projection_triton.default, (logits, 2))
    plain = logits.detach()
    torch.library.opcheck(torch.ops.crma.sinkhorn_projection_triton_backward.default, (plain, plain, 2))
    wide = torch.randn(2, 3, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: kernels.sinkhorn_projection(values, 2), wide)


@pytest.mark.clause("GRAD-1")
def test_compiles_without_a_break(kernels, device):
    logits = torch.randn(2, 3, 3, device=device, requires_grad=True)
    compiled = torch.compile(kernels.sinkhorn_projection, backend="aot_eager", fullgraph=True)
    (eager,) = torch.autograd.grad(kernels.sinkhorn_projection(logits, 3).square().sum(), logits)
    (traced,) = torch.autograd.grad(compiled(logits, 3).square().sum(), logits)
    assert torch.equal(eager, traced)
