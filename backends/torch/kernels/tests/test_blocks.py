"""The kernels against plain PyTorch in float64, on sizes that fill no block or many: what golden vectors do not see."""

import pytest
import torch

from backends.torch.kernels.agreement import EPS, inputs, random_cotangent, rounding_shares, value_and_gradients
from backends.torch.residual_mixing import residual_mixing as plain_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection as plain_projection


@pytest.fixture
def small_blocks(module, monkeypatch):
    """16 tokens and 16 places at a time, and three parts of sums over tokens: no loop is entered only once."""
    launch = module("launch")

    def blocks(x, width):
        return launch.Blocks(16, 16, 16, launch.power_of_two(width, 16), *launch._splits(len(x), 16, 3))

    monkeypatch.setattr(module("residual_mixing"), "blocks_for", blocks)


def assert_agree(kernels, values):
    shares = rounding_shares(kernels.residual_mixing, values, random_cotangent(values))
    assert max(shares.values()) <= 1, shares


def test_agreement_notices_a_wrong_result(device):
    values = inputs((65,), 37, 3, 4, device)
    cotangent = random_cotangent(values)
    assert max(rounding_shares(plain_mixing, values, cotangent).values()) <= 1
    for wrong in (lambda x, *others: 1.001 * plain_mixing(x, *others), lambda x, *others: 0 * plain_mixing(x, *others)):
        assert rounding_shares(wrong, values, cotangent)["y"] > 1


@pytest.mark.clause("MIX-2", "MIX-3", "GRAD-4", "GRAD-5", "GRAD-7")
@pytest.mark.parametrize(
    ("leading", "d", "n", "rank"),
    [
        ((5,), 19, 3, 2),
        ((2, 3), 40, 1, 1),
        ((1030,), 33, 3, 5),
        ((7,), 300, 8, 4),
        ((2, 1, 3), 131, 5, 7),
        ((17,), 530, 64, 8),
    ],
)
def test_mixing_agrees_with_the_plain_function(kernels, device, leading, d, n, rank):
    assert_agree(kernels, inputs(leading, d, n, rank, device))


@pytest.mark.clause("MIX-2", "GRAD-5", "GRAD-7")
@pytest.mark.parametrize(("leading", "d", "n", "rank"), [((50,), 19, 3, 2), ((161,), 40, 5, 7)])
def test_mixing_agrees_in_many_blocks(kernels, device, small_blocks, leading, d, n, rank):
    assert_agree(kernels, inputs(leading, d, n, rank, device))


@pytest.mark.clause("BACK-3", "MIX-10", "GRAD-7")
def test_mixing_gives_the_same_bits_in_any_memory_and_changes_no_input(kernels, device, small_blocks):
    values = inputs((161,), 40, 3, 3, device)
    before, cotangent = [value.clone() for value in values], torch.randn_like(values[0])
    strided = [values[0].T.contiguous().T, *values[1:]]
    assert not strided[0].is_contiguous()
    results = [value_and_gradients(kernels.residual_mixing, each, cotangent) for each in (values, values, strided)]
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))
    assert all(map(torch.equal, values, before))


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_float32_inside_and_rounded_once(kernels, device, dtype):
    """On the CPU to the bit; a GPU multiplies otherwise for 16-bit x, so there to one rounding."""
    x, *parameters = inputs((65,), 37, 3, 4, device)
    x, cotangent = x.to(dtype), torch.randn_like(x).to(dtype)
    narrow = value_and_gradients(kernels.residual_mixing, [x, *parameters], cotangent)
    wide = value_and_gradients(kernels.residual_mixing, [x.float(), *parameters], cotangent.float())
    for left, right in zip(narrow[:2], wide[:2], strict=True):
        exact = 0.0 if kernels.INTERPRETED else None
        torch.testing.assert_close(left, right.to(dtype), rtol=exact, atol=exact)
    for left, right in zip(narrow[2:], wide[2:], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.clause("MIX-8")
def test_identity_and_a_closed_gate_leave_every_bit(kernels, device):
    x, mixing, strength, basis = inputs((6,), 20, 2, 3, device)
    assert torch.equal(kernels.residual_mixing(x, torch.eye(2, device=device), strength, basis), x)
    assert torch.equal(kernels.residual_mixing(x, mixing, 0 * strength, basis), x)


@pytest.mark.clause("SINK-1", "SINK-3", "SINK-5", "GRAD-1", "GRAD-3")
@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("shape", [(5, 3, 3), (2, 3, 5, 5), (3, 7, 7), (12, 12), (2, 17, 17), (64, 64)])
def test_projection_agrees_with_the_plain_function(kernels, device, shape, iterations):
    generator = torch.Generator().manual_seed(shape[-1])
    logits, cotangent = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    logits *= 3
    mixing, grad = value_and_gradients(lambda s: kernels.sinkhorn_projection(s, iterations), [logits], cotangent)
    expected = value_and_gradients(lambda s: plain_projection(s, iterations), [logits.double()], cotangent)
    unit = EPS * (float(logits.max() - logits.min()) + 1)
    assert mixing.dtype == torch.float32
    torch.testing.assert_close(mixing.double(), expected[0], rtol=0, atol=16 * unit)
    torch.testing.assert_close(grad.double(), expected[1], rtol=0, atol=32 * unit * float(cotangent.abs().max()))
    for axis in (-1, -2):
        sums = mixing.double().sum(axis)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=5e-7 * max(1, shape[-1] / 16))


@pytest.mark.clause("SINK-1", "BACK-3")
def test_each_matrix_is_its_own_whatever_the_block(kernels, device, module, monkeypatch):
    """Nine matrices in one program, or in blocks of two with the last half empty: the same bits."""
    logits, cotangent = torch.randn(2, 9, 3, 3, device=device)
    one = value_and_gradients(lambda s: kernels.sinkhorn_projection(s, 3), [logits], cotangent)
    monkeypatch.setattr(module("sinkhorn_projection"), "ENTRIES", 32)
    many = value_and_gradients(lambda s: kernels.sinkhorn_projection(s, 3), [logits], cotangent)
    assert all(map(torch.equal, one, many))


@pytest.mark.clause("SINK-1", "BACK-1")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_empty_batches_of_logits(kernels, device, dtype):
    logits = torch.randn(2, 0, 3, 3, device=device, dtype=dtype, requires_grad=True)
    mixing = kernels.sinkhorn_projection(logits)
    (grad,) = torch.autograd.grad(mixing.sum(), logits)
    assert mixing.shape == logits.shape
    assert mixing.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
