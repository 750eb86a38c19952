"""The kernels as operators of torch: schemas, fake kernels, torch.compile, and derivatives of every order and form."""

import pytest
import torch

from backends.torch import sinkhorn_projection
from backends.torch.kernels.agreement import inputs
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.tests import test_second_derivatives as plain

pytestmark = pytest.mark.clause("GRAD-1", "GRAD-7")

OPERATORS = ["residual_mixing_triton", "sinkhorn_projection_triton"]


def operands(operator, device):
    """What it takes, and what its gradient takes."""
    if operator == "sinkhorn_projection_triton":
        logits = torch.randn(2, 3, 3, device=device)
        return (logits, 2), (logits, logits, 2)
    values = inputs((4,), 9, 2, 2, device)
    y, streams = torch.ops.crma.residual_mixing_triton(*values)
    return tuple(values), (y, values[0], streams, *values[1:])


def adapter(project, mix):
    return lambda x, logits, gate, basis: mix(x, project(logits, 3), adapter_strength(gate, basis), basis)


@pytest.fixture
def by_kernels(kernels):
    return adapter(kernels.sinkhorn_projection, kernels.residual_mixing)


@pytest.fixture
def values(device):
    return tuple(value.to(device) for value in plain.inputs())


def test_every_operator_of_the_kernels_is_tested_here(kernels):
    from torch._library.custom_ops import OPDEFS

    assert {name for name in OPDEFS if name.startswith("crma::")} == {
        f"crma::{name}{of}" for name in OPERATORS for of in ("", "_backward")
    }
    assert plain.functions_of(kernels) == set()


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_registered_as_torch_asks(kernels, device, operator):
    given, given_backward = operands(operator, device)
    leaves = [value.clone().requires_grad_() if isinstance(value, torch.Tensor) else value for value in given]
    torch.library.opcheck(getattr(torch.ops.crma, operator).default, tuple(leaves))
    torch.library.opcheck(getattr(torch.ops.crma, f"{operator}_backward").default, given_backward)


def test_compiles_without_a_break(by_kernels, values):
    leaves = [value.float().requires_grad_() for value in values]
    compiled = torch.compile(by_kernels, backend="aot_eager", fullgraph=True)
    eager, traced = (torch.autograd.grad(call(*leaves).square().sum(), leaves) for call in (by_kernels, compiled))
    assert all(map(torch.equal, eager, traced))


@pytest.mark.parametrize("form", plain.FORMS)
def test_every_form_gives_what_plain_operations_give(by_kernels, values, form):
    expected = plain.FORMS[form](adapter(sinkhorn_projection, residual_mixing), values)
    plain.assert_agree(plain.FORMS[form](by_kernels, values), expected)


def test_the_first_gradient_is_the_kernels_own_where_it_is_differentiated(by_kernels, values):
    leaves = [value.float().requires_grad_() for value in values]
    loss = by_kernels(*leaves).square().sum()
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    open_to_more = torch.autograd.grad(loss, leaves, create_graph=True)
    assert all(map(torch.equal, once[:3], open_to_more[:3]))


def test_passes_the_checks_of_torch(by_kernels, values):
    leaves = [value.requires_grad_() for value in values]
    assert torch.autograd.gradcheck(by_kernels, leaves)
    assert torch.autograd.gradgradcheck(by_kernels, leaves, nondet_tol=1e-9)
