"""Adapters and models with ``kernels="triton"``, beside the same with plain PyTorch; and how kernels are chosen."""

import copy

import pytest
import torch

from backends.torch import CRMAAdapter, attach_crma
from backends.torch.conftest import IDS, tiny_model
from backends.torch.functions import functions
from backends.torch.kernels.tests.conftest import said
from reference.adapter import AdapterConfig
from reference.errors import ConfigError

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what is told to a machine without a GPU")


@pytest.fixture
def two_models(device):
    """The same model with the same open adapters, computed by plain PyTorch and by the kernels."""
    base, models = tiny_model("llama"), []
    for kernels in ("torch", "triton"):
        model = copy.deepcopy(base).to(device)
        models.append((model, attach_crma(model, gate_logit=1.0, seed=3, kernels=kernels)))
    return models


@pytest.fixture
def ids(device):
    return IDS.to(device)


@pytest.mark.clause("MIX-2", "GRAD-7")
def test_a_model_gives_the_same_loss_and_gradients(two_models, ids):
    results = []
    for model, backbone in two_models:
        loss = model(ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in backbone.parameters())])
    for plain, triton in zip(*results, strict=True):
        assert plain.abs().max() > 1e-5
        torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.clause("MIX-2")
def test_generates_the_same_tokens(two_models, ids):
    tokens = [model.generate(ids, max_new_tokens=8, do_sample=False, min_new_tokens=8) for model, _ in two_models]
    assert tokens[0].shape == (2, 18)
    assert torch.equal(*tokens)


@pytest.mark.clause("MIX-2")
@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_inference_agrees_with_training_for_few_tokens_and_for_many(two_models, device, tokens):
    backbone, x = two_models[1][1], torch.randn(tokens, 32, device=device)
    trained = backbone.adapters[0](x)
    with torch.no_grad(), backbone.prepare():
        inferred = backbone.adapters[0](x)
    assert (trained - x).abs().max() > 1e-2
    torch.testing.assert_close(inferred, trained)


@pytest.mark.slow
@pytest.mark.clause("MIX-2")
def test_a_model_compiles_in_one_graph(two_models, ids):
    model, _ = two_models[1]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(lambda ids: model(input_ids=ids, use_cache=False).logits, fullgraph=True)
        torch.testing.assert_close(compiled(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.clause("ERR-3")
def test_auto_is_triton_on_a_gpu_and_plain_elsewhere(kernels):
    plain, triton = functions("torch", "cpu"), functions("triton", "cpu")
    assert triton.residual_mixing is kernels.residual_mixing
    assert functions("auto", "cpu") == functions("torch", "cuda") == plain
    assert functions("auto", "cuda") == functions("triton", "cuda") == triton


@pytest.mark.clause("MIX-1")
def test_the_choice_survives_a_copy(kernels):
    adapter = copy.deepcopy(CRMAAdapter(32, kernels="triton"))
    assert (adapter.kernels, adapter.config) == ("triton", AdapterConfig(32))


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize(("n", "rank"), [(6, 100), (65, 1), (64, 9)])
def test_sizes_that_the_kernels_do_not_take_name_the_plain_ones(kernels, device, n, rank):
    adapter = CRMAAdapter(600, n, rank, kernels="triton").to(device)
    with pytest.raises(ConfigError, match=r"at most 64.*kernels='torch'"):
        adapter(torch.randn(2, 600, device=device))


LOAD = "from backends import load_backend; b = load_backend('torch-triton'); print(b.name, b.version, b.device); "
FIRST = "from backends.torch.kernels import sinkhorn_projection as project; "
NO_TRITON = "import sys; sys.modules['triton'] = None; "


@pytest.mark.clause("BACK-2", "ERR-3")
def test_the_backend_says_where_it_computes_and_switches_no_other_kernels_over(kernels):
    device = "cuda (" if torch.cuda.is_available() else "cpu (Triton interpreter)"
    answer = said(LOAD + "import os; print(os.environ.get('TRITON_INTERPRET'))")
    assert answer.startswith("torch-triton torch ")
    assert f" {device}" in answer
    assert answer.strip().endswith("None")


@needs_no_gpu
@pytest.mark.clause("ERR-3")
def test_kernels_made_for_a_gpu_are_no_silent_fallback(kernels):
    """How they are made is settled at their first use in a process."""
    assert "DeviceUnavailableError: backend torch-triton: got no CUDA device" in said(FIRST + LOAD)
    answer = said(FIRST + "import torch; project(torch.zeros(2, 2))")
    assert "DeviceUnavailableError: mix_logits: got a tensor on cpu" in answer
    assert "kernels='torch'" in answer
    assert " cpu (Triton interpreter)" in said(FIRST + LOAD, TRITON_INTERPRET="1")


@pytest.mark.clause("BACK-2", "ERR-2", "ERR-3", "ERR-4")
def test_a_missing_triton_is_told_in_one_line_when_adapters_or_the_backend_are_made():
    make = "from backends.torch.functions import functions as of; of('torch', 'cuda'); of('auto', 'cpu'); "
    for code in (LOAD, make + "of('auto', 'cuda')"):
        answer = said(NO_TRITON + code)
        assert "MissingPackageError: kernels: got no package named triton" in answer
        assert "pip install 'crma[triton]'" in answer
        assert "kernels='torch'" in answer
