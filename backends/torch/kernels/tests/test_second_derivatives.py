"""Derivatives of derivatives of the kernels: in every form those of plain PyTorch, which makes them."""

from __future__ import annotations

import pytest
import torch

from backends.torch import sinkhorn_projection
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.tests.test_second_derivatives import FORMS, assert_agree, functions_of, inputs

pytestmark = pytest.mark.clause("GRAD-7")

OPERATORS = {"crma::residual_mixing_triton", "crma::sinkhorn_projection_triton"}


def adapter(project, mix):
    return lambda x, logits, gate, basis: mix(x, project(logits, 3), adapter_strength(gate, basis), basis)


def test_every_operator_of_the_kernels_is_tested_here(kernels):
    from torch._library.custom_ops import OPDEFS

    ours = {name for name in OPDEFS if name.startswith("crma::")}
    assert ours == OPERATORS | {f"{name}_backward" for name in OPERATORS}
    assert functions_of(kernels) == set()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_plain_operations_give(kernels, device, form):
    values = tuple(value.to(device) for value in inputs())
    by_kernels = adapter(kernels.sinkhorn_projection, kernels.residual_mixing)
    assert_agree(FORMS[form](by_kernels, values), FORMS[form](adapter(sinkhorn_projection, residual_mixing), values))


def test_the_first_gradient_is_the_kernels_own_where_it_is_differentiated(kernels, device):
    leaves = [value.float().to(device).requires_grad_() for value in inputs()]
    loss = adapter(kernels.sinkhorn_projection, kernels.residual_mixing)(*leaves).square().sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    open_to_more = torch.autograd.grad(loss, leaves, create_graph=True)
    for one, other in zip(plain[:3], open_to_more[:3], strict=True):
        assert torch.equal(one, other)


def test_passes_the_checks_of_torch(kernels, device):
    leaves = [value.to(device).requires_grad_() for value in inputs()]
    by_kernels = adapter(kernels.sinkhorn_projection, kernels.residual_mixing)
    assert torch.autograd.gradgradcheck(by_kernels, leaves, nondet_tol=1e-9)
