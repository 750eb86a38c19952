"""CRMAAdapter as a module in somebody's training code. What it computes is checked by conformance/."""

import copy
import re
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import pytest
import torch

import reference
from backends.torch import CRMAAdapter
from backends.torch.prepared import Prepared
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from reference.errors import ConfigError, ShapeError


def make_adapter(gate: float = 0.0) -> CRMAAdapter:
    adapter = CRMAAdapter(hidden_size=24, streams=3, rank=2, seed=5)
    with torch.no_grad():
        adapter.gate_logit.fill_(gate)
    return adapter


def reference_output(adapter: CRMAAdapter, x: torch.Tensor) -> np.ndarray:
    values = (p.detach().numpy() for p in (adapter.mix_logits, adapter.gate_logit, adapter.basis))
    return reference.adapter_forward(x.double().numpy(), reference.AdapterParameters(*values))


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.clause("MIX-10")
def test_output_has_the_dtype_of_x_and_is_rounded_once(dtype: torch.dtype, unit: float) -> None:
    adapter, x = make_adapter(), torch.randn(5, 7, 24).to(dtype)
    y = adapter(x)
    expected = reference_output(adapter, x)
    assert y.dtype == dtype
    assert np.abs(expected - x.double().numpy()).max() > 0.1  # the adapter does something that the bound below can see
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=unit, atol=2e-6)


def test_every_parameter_gets_the_gradient_of_the_reference() -> None:
    adapter, x = make_adapter(), torch.randn(5, 7, 24, requires_grad=True)
    cotangent = torch.randn_like(x)
    adapter(x).backward(cotangent)
    values = (p.detach().numpy() for p in (adapter.mix_logits, adapter.gate_logit, adapter.basis))
    expected = reference.adapter_vjp(x.detach().numpy(), reference.AdapterParameters(*values), cotangent.numpy())
    for tensor, gradient in zip((x, adapter.mix_logits, adapter.gate_logit, adapter.basis), expected, strict=True):
        assert tensor.grad is not None
        error = np.abs(tensor.grad.numpy().reshape(gradient.shape) - gradient).max()
        assert error <= 2e-5 * np.abs(gradient).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moving_the_model_to_half_precision_leaves_the_parameters_bit_for_bit(dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(24, 24), make_adapter())
    before = [p.detach().clone() for p in model[1].parameters()]
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    for old, new in zip(before, model[1].parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.dtype == torch.float32


def test_autocast_does_not_lower_the_precision_inside() -> None:
    adapter, x = make_adapter(), torch.randn(9, 24)
    outside = adapter(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = adapter(x)
    assert torch.equal(outside, inside)


def prepared(adapter: CRMAAdapter, strength: torch.Tensor, *, with_graph: bool) -> Prepared:
    """M = I, which shows in y whether it was used."""
    made_of = [parameter.detach().clone()[None] for parameter in adapter.parameters()]
    return Prepared(torch.eye(3), strength, None, made_of, 0, with_graph=with_graph, traced=False, thread=get_ident())


def test_prepared_tensors_are_not_used_after_the_forward_pass() -> None:
    adapter, x = make_adapter(), torch.randn(9, 24)
    adapter.prepare(prepared(adapter, torch.tensor(0.3, requires_grad=True), with_graph=True))
    assert torch.equal(adapter(x), x)  # M = I: what was prepared is used
    adapter.release()
    np.testing.assert_allclose(adapter(x).detach().numpy(), reference_output(adapter, x), atol=2e-6)
    assert not torch.equal(adapter(x), x)


@pytest.mark.clause("GRAD-7")
def test_what_was_prepared_without_a_graph_does_not_cut_off_the_gradients() -> None:
    adapter, x = make_adapter(), torch.randn(9, 24)
    adapter.prepare(prepared(adapter, torch.tensor(0.3), with_graph=False))
    with torch.no_grad():
        assert torch.equal(adapter(x), x)
    adapter(x).backward(torch.randn_like(x))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


def test_a_copy_computes_the_same_and_is_independent() -> None:
    adapter, x = make_adapter(), torch.randn(9, 24)
    adapter.prepare(prepared(adapter, torch.tensor(0.3), with_graph=True))
    twin = copy.deepcopy(adapter)
    with torch.no_grad():
        adapter.mix_logits.zero_()
    np.testing.assert_allclose(twin(x).detach().numpy(), reference_output(twin, x), atol=2e-6)


def test_a_wrong_hidden_size_is_named() -> None:
    with pytest.raises(ShapeError, match=r"x: got \(2, 23\); allowed: \(\.\.\., 24\)"):
        make_adapter()(torch.zeros(2, 23))


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 8}, "streams \\* rank"),
        ({"hidden_size": 24, "iterations": 0}, "iterations"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        CRMAAdapter(**sizes)


def test_the_example_of_the_readme_runs() -> None:
    readme = Path(__file__).parents[3] / "README.md"
    if not readme.is_file():
        pytest.skip("the README is only in a checkout")
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    example = [block for block in blocks if "CRMAAdapter" in block]
    assert len(example) == 1
    exec(compile(example[0], "README.md", "exec"), {})


@pytest.mark.clause("MIX-1")
def test_a_basis_without_streams_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="basis"):
        adapter_strength(torch.zeros(()), torch.ones(2, 8))


@pytest.mark.clause("MIX-1")
@pytest.mark.parametrize(
    ("x", "mixing", "basis"), [((3, 7), 2, (2, 2, 8)), ((3, 8), 1, (2, 2, 8)), ((3, 8), 2, (2, 8))]
)
def test_sizes_that_do_not_fit_are_refused_by_name(x: Any, mixing: int, basis: Any) -> None:
    with pytest.raises(ShapeError, match="with mixing"):
        residual_mixing(torch.ones(x), torch.eye(mixing), torch.ones(1), torch.ones(basis))
