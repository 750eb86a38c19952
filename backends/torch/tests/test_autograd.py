"""The adapter inside torch's own machinery: vmap, compile, CUDA graphs. More derivatives: test_second_derivatives."""

from __future__ import annotations

import pytest
import torch

from backends.torch import CRMAAdapter, attach_crma, sinkhorn_projection
from backends.torch.conftest import IDS, tiny_model
from backends.torch.tests.test_second_derivatives import closed, draw, inputs
from reference import AdapterConfig


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("wanted", range(4))
def test_a_single_input_can_be_differentiated(wanted: int) -> None:
    """Where only one input asks for a gradient, it gets the one that it gets together with the others."""
    together, cotangent = [value.requires_grad_() for value in inputs()], draw(2, 5, seed=5)
    closed()(*together).backward(cotangent)
    alone = [value.requires_grad_(index == wanted) for index, value in enumerate(inputs())]
    closed()(*alone).backward(cotangent)
    torch.testing.assert_close(alone[wanted].grad, together[wanted].grad, rtol=0, atol=0)


@pytest.mark.clause("SINK-1")
def test_vmap_is_the_batch() -> None:
    logits = draw(5, 4, 4).float()
    mapped = torch.func.vmap(lambda s: sinkhorn_projection(s, 20))(logits)
    torch.testing.assert_close(mapped, sinkhorn_projection(logits, 20), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic: bool) -> None:
    """No graph break, forward or backward, and the same numbers up to rounding."""
    torch._dynamo.reset()
    eager, compiled = ([value.float().requires_grad_() for value in inputs()] for _ in range(2))
    expected, actual = closed()(*eager), torch.compile(closed(), fullgraph=True, dynamic=dynamic)(*compiled)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for y in (expected, actual):
        y.backward(draw(2, 5, seed=5).float())
    for left, right in zip(compiled, eager, strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("in_a_model", [False, True])
def test_traces_in_one_graph(in_a_model: bool) -> None:
    """Quicker than compiling: dynamo's tracer alone, which is what a graph break would stop."""
    torch._dynamo.reset()
    model = tiny_model("llama")
    adapter = attach_crma(model, AdapterConfig(32, 2, 2, 3)).adapters[0]
    if in_a_model:
        explained = torch._dynamo.explain(lambda ids: model(input_ids=ids, use_cache=False).logits)(IDS)
    else:
        explained = torch._dynamo.explain(adapter)(torch.randn(2, 5, 32))
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_is_captured_in_a_cuda_graph() -> None:
    adapter, x = CRMAAdapter(64).cuda(), torch.randn(8, 64).cuda()
    with torch.no_grad():
        adapter(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = adapter(x)
        x.copy_(torch.randn(8, 64))
        graph.replay()
        torch.testing.assert_close(y, adapter(x), rtol=1e-6, atol=1e-6)
