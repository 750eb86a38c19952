"""The adapter inside torch's own machinery: gradcheck, functional transforms, compile, autocast, checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from backends.torch import CRMAAdapter, attach_crma, sinkhorn_projection
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from reference import AdapterConfig


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole(x: torch.Tensor, logits: torch.Tensor, gate: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    return residual_mixing(x, sinkhorn_projection(logits, 3), adapter_strength(gate, basis), basis)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return draw(2, 4, 9, dtype=dtype), draw(3, 3, dtype=dtype), draw(1, dtype=dtype), draw(3, 2, 9, dtype=dtype)


@pytest.mark.clause("GRAD-1", "GRAD-2")
@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4), (2, 1, 2, 2)])
def test_projection_passes_gradcheck(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(lambda s: sinkhorn_projection(s, 3), (draw(*shape).requires_grad_(),))


@pytest.mark.clause("GRAD-4", "GRAD-5", "GRAD-6")
def test_adapter_passes_gradcheck() -> None:
    assert torch.autograd.gradcheck(whole, tuple(value.requires_grad_() for value in inputs()))


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("wanted", range(4))
def test_a_single_input_can_be_differentiated(wanted: int) -> None:
    """Where only one input asks for a gradient, it gets the one that it gets together with the others."""
    together = [value.requires_grad_() for value in inputs()]
    cotangent = draw(2, 4, 9, seed=5)
    whole(*together).backward(cotangent)
    alone = [value.requires_grad_(index == wanted) for index, value in enumerate(inputs())]
    whole(*alone).backward(cotangent)
    torch.testing.assert_close(alone[wanted].grad, together[wanted].grad, rtol=0, atol=0)


@pytest.mark.clause("SINK-1")
def test_vmap_is_the_batch() -> None:
    logits = draw(5, 4, 4, dtype=torch.float32)
    mapped = torch.func.vmap(lambda s: sinkhorn_projection(s, 20))(logits)
    torch.testing.assert_close(mapped, sinkhorn_projection(logits, 20), rtol=0, atol=1e-6)


@pytest.mark.clause("GRAD-1")
def test_functional_gradient_per_example() -> None:
    """vmap over grad: per-example gradients, as the sum over the batch has them together."""
    x, *parameters = inputs()
    cotangent = draw(2, 4, 9, seed=5)

    def loss(logits: torch.Tensor, tokens: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
        return (whole(tokens, logits, parameters[1], parameters[2]) * upstream).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters[0], x, cotangent)
    together = torch.func.grad(loss)(parameters[0], x, cotangent)
    assert each.shape == (2, 3, 3)
    torch.testing.assert_close(each.sum(0), together, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic: bool) -> None:
    """No graph break, forward or backward, and the same numbers up to rounding."""
    torch._dynamo.reset()
    eager, compiled = ([value.requires_grad_() for value in inputs(torch.float32)] for _ in range(2))
    cotangent = draw(2, 4, 9, dtype=torch.float32, seed=5)
    expected, actual = whole(*eager), torch.compile(whole, fullgraph=True, dynamic=dynamic)(*compiled)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    expected.backward(cotangent)
    actual.backward(cotangent)
    for left, right in zip(compiled, eager, strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.clause("MIX-10")
def test_traces_in_one_graph() -> None:
    """Quicker than compiling: dynamo's tracer alone, which is what a graph break would stop."""
    torch._dynamo.reset()
    adapter = CRMAAdapter(12, 3, 2, iterations=3)
    explained = torch._dynamo.explain(adapter)(draw(2, 5, 12, dtype=torch.float32))
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_model_with_adapters_traces_in_one_graph() -> None:
    transformers = pytest.importorskip("transformers")
    torch._dynamo.reset()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(intermediate_size=24, vocab_size=40, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    attach_crma(model, AdapterConfig(16, 2, 2, 3))
    explained = torch._dynamo.explain(lambda ids: model(input_ids=ids, use_cache=False).logits)(torch.ones(2, 7).long())
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_structural_arithmetic_alone(dtype: torch.dtype) -> None:
    adapter, x = CRMAAdapter(12, 3, 2), draw(2, 5, 12, dtype=torch.float32)
    with torch.no_grad():
        adapter.gate_logit.fill_(2.0)
    expected = adapter(x)
    with torch.autocast("cpu", dtype):
        actual = adapter(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.clause("GRAD-7")
def test_checkpointing_recomputes_the_same_gradients() -> None:
    def gradients(forward: Any) -> list[torch.Tensor]:
        adapter, x = CRMAAdapter(12, 3, 2, seed=3), draw(4, 12, dtype=torch.float32).requires_grad_()
        forward(adapter, x).backward(draw(4, 12, dtype=torch.float32, seed=5))
        return [value.grad for value in (x, *adapter.parameters()) if value.grad is not None]

    plain = gradients(lambda adapter, x: adapter(x))
    recomputed = gradients(lambda adapter, x: checkpoint(adapter, x, use_reentrant=False))
    assert len(plain) == len(recomputed) == 4
    for left, right in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_is_captured_in_a_cuda_graph() -> None:
    adapter, x = CRMAAdapter(64).cuda(), draw(8, 64, dtype=torch.float32).cuda()
    with torch.no_grad():
        adapter(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = adapter(x)
        x.copy_(draw(8, 64, dtype=torch.float32, seed=9))
        graph.replay()
        torch.testing.assert_close(y, adapter(x), rtol=1e-6, atol=1e-6)
