"""CRMAAdapter in somebody's training code: which tensors it takes, how it rounds, what it keeps, vmap, compile, graphs.

What its functions compute is checked by conformance/, more derivatives by test_second_derivatives.
"""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import reference
from backends import load_backend
from backends.torch import CRMAAdapter, CRMABackbone, attach_crma, sinkhorn_projection
from backends.torch.conftest import IDS, tiny_model
from backends.torch.functions import functions
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.tests.test_second_derivatives import closed, draw, inputs
from reference.errors import ConfigError, DtypeError, ShapeError

FLOAT8 = [name for name in dir(torch) if name.startswith(("float8_", "float4_"))]
REFUSED = (*FLOAT8, "int8", "int64", "uint16", "bool", "complex64")


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    kind = getattr(torch, dtype)
    return torch.zeros(*shape[:-1], shape[-1] * kind.itemsize, dtype=torch.uint8).view(kind)


modes = pytest.mark.parametrize(("grad", "prepared"), [(True, False), (True, True), (False, False), (False, True)])


@modes
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.clause("MIX-2", "MIX-10")
def test_output_has_the_dtype_of_x_and_is_rounded_once(
    grad: bool, prepared: bool, dtype: torch.dtype, unit: float
) -> None:
    adapter, x = CRMAAdapter(hidden_size=24, streams=3, rank=2, seed=5), torch.randn(5, 7, 24).to(dtype)
    torch.nn.init.constant_(adapter.gate_logit, 0.0)
    with torch.set_grad_enabled(grad), CRMABackbone([adapter]).prepare() if prepared else nullcontext():
        y = adapter(x)
        with torch.autocast("cpu", torch.bfloat16):  # does not lower the precision inside
            assert torch.equal(adapter(x), y)
    values = reference.AdapterParameters(*(parameter.detach().numpy() for parameter in adapter.parameters()))
    expected = reference.adapter_forward(x.double().numpy(), values)
    assert y.dtype == dtype
    assert np.abs(expected - x.double().numpy()).max() > 0.1  # the adapter does something that the bound below can see
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=unit, atol=2e-6)


@pytest.mark.clause("MIX-10", "ERR-1", "ERR-2")
@pytest.mark.parametrize("kind", ["torch", "triton"])
@pytest.mark.parametrize("dtype", REFUSED)
def test_other_dtypes_are_refused_by_name(dtype: str, kind: Any) -> None:
    """A y in another dtype could not hold what the adapter changes."""
    if kind == "triton":
        pytest.importorskip("triton")
        load_backend("torch-triton")  # without a GPU it sets up the interpreter, before the kernels are imported
    project, mix = functions(kind, "cpu")
    called: Any
    shapes = {"x": (4, 9), "mixing": (3, 3), "strength": (1,), "basis": (3, 2, 9), "gate_logit": (1,)}
    taken: dict[str, Any] = {name: torch.ones(shape) for name, shape in shapes.items()}
    for called, fields in (
        (project, ["mixing"]),
        (adapter_strength, ["gate_logit", "basis"]),
        (mix, ["x", "mixing", "strength", "basis"]),
    ):
        for wrong in fields:
            given = [tensor(dtype, *shapes[name]) if name == wrong else taken[name] for name in fields]
            with pytest.raises(DtypeError, match=f"got dtype {dtype}; allowed: a float of 16 bits") as caught:
                called(*given, *([20] if called is project else []))
            assert caught.value.field == ("mix_logits" if called is project else wrong)


@pytest.mark.clause("MIX-10")
@modes
def test_an_adapter_refuses_x_before_it_computes_and_lets_it_pass_when_it_is_off(grad: bool, prepared: bool) -> None:
    adapter = CRMAAdapter(9, 3, 2)
    with torch.set_grad_enabled(grad), CRMABackbone([adapter]).prepare() if prepared else nullcontext():
        for dtype in REFUSED:
            with pytest.raises(DtypeError, match=f"x: got dtype {dtype}"):
                adapter(tensor(dtype, 4, 9))
        with pytest.raises(DtypeError, match="x: got dtype ndarray"):
            adapter(np.zeros((4, 9)))
        with pytest.raises(ShapeError, match=r"x: got \(2, 8\); allowed: \(\.\.\., 9\)"):
            adapter(torch.zeros(2, 8))
        assert adapter(torch.ones(4, 9, dtype=torch.float64)).dtype == torch.float64
        adapter.enabled = False
        for dtype in REFUSED:
            x = tensor(dtype, 4, 9)
            assert adapter(x) is x


@pytest.mark.clause("MIX-1", "ERR-2")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: CRMAAdapter(8), ConfigError, r"streams \* rank"),
        (
            lambda: CRMAAdapter(32, kernels="cuda"),  # type: ignore[arg-type]  # what is tested
            ConfigError,
            "got 'cuda'; allowed: 'auto', 'torch', 'triton'",
        ),
        (lambda: adapter_strength(torch.zeros(()), torch.ones(2, 8)), ShapeError, "basis"),
        *(
            (
                lambda x=x, n=n, basis=basis: residual_mixing(torch.ones(x), torch.eye(n), torch.ones(1), basis),
                ShapeError,
                "with mixing",
            )
            for x, n, basis in (
                ((3, 7), 2, torch.ones(2, 2, 8)),
                ((3, 8), 1, torch.ones(2, 2, 8)),
                ((3, 8), 2, torch.ones(2, 8)),
            )
        ),
    ],
)
def test_sizes_and_choices_that_cannot_be_are_named(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_y_can_be_changed_in_place_where_the_backward_pass_does_not_keep_it() -> None:
    x = torch.randn(2, 3, 16, dtype=torch.bfloat16, requires_grad=True)
    y = CRMAAdapter(16)(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("grad", [False, True])
def test_a_float64_model_is_not_rounded_to_float32(grad: bool) -> None:
    model = tiny_model("llama").double()
    with torch.set_grad_enabled(grad):
        bare = model(IDS).logits
        attach_crma(model, gate_logit=-60.0)
        torch.testing.assert_close(model(IDS).logits, bare, rtol=1e-13, atol=1e-13)


def kept_for_the_backward_pass(adapters: bool) -> Counter[int]:
    """Sizes in bytes of the storages that autograd keeps, of a token's hidden state and more per token."""
    model, ids = tiny_model("llama").requires_grad_(False), torch.arange(3, 51).reshape(3, 16)
    model.model.embed_tokens.requires_grad_(True)
    if adapters:
        attach_crma(model)
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, use_cache=False)
    least = ids.numel() * model.config.hidden_size * 4
    return Counter(size for tensor in storages.values() if (size := tensor.untyped_storage().nbytes()) >= least)


def test_adapters_keep_nothing_of_the_size_of_the_residual_stream() -> None:
    """They keep y, which the norm of the next block keeps as well."""
    without = kept_for_the_backward_pass(False)
    assert sum(without.values()) > 10
    assert kept_for_the_backward_pass(True) == without


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
    adapter = attach_crma(model, reference.AdapterConfig(32, 2, 2, 3)).adapters[0]
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
