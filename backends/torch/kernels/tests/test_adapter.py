"""CRMAAdapter and attach_crma with ``kernels="triton"``, beside the same with plain PyTorch."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from backends.torch import CRMAAdapter, attach_crma
from backends.torch.conftest import tiny_model
from backends.torch.functions import functions
from reference.adapter import AdapterConfig
from reference.errors import ConfigError, DeviceUnavailableError

IDS = torch.arange(14).reshape(2, 7) + 3


def two_models(device):
    """The same model with the same open adapters, computed by plain PyTorch and by the kernels."""
    base, models = tiny_model("llama"), []
    for kernels in ("torch", "triton"):
        model = copy.deepcopy(base).to(device)
        backbone = attach_crma(model, gate_logit=1.0, seed=3, kernels=kernels)
        models.append((model, backbone))
    return models


@pytest.mark.clause("MIX-2", "GRAD-7")
def test_a_model_gives_the_same_loss_and_gradients(kernels, device):
    results = []
    for model, backbone in two_models(device):
        loss = model(IDS.to(device), labels=IDS.to(device)).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in backbone.parameters())])
    for plain, triton in zip(*results, strict=True):
        assert plain.abs().max() > 1e-5
        torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.clause("MIX-2")
def test_generates_the_same_tokens(kernels, device):
    tokens = [
        model.generate(IDS.to(device), max_new_tokens=8, do_sample=False, min_new_tokens=8)
        for model, _ in two_models(device)
    ]
    assert tokens[0].shape == (2, 15)
    assert torch.equal(*tokens)


@pytest.mark.clause("MIX-2")
@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_inference_agrees_with_training_for_few_tokens_and_for_many(kernels, device, tokens):
    _, backbone = two_models(device)[1]
    adapter, x = backbone.adapters[0], torch.randn(tokens, 32, device=device)
    trained = adapter(x)
    with torch.no_grad(), backbone.prepare():
        inferred = adapter(x)
    assert (trained - x).abs().max() > 1e-2
    torch.testing.assert_close(inferred, trained)


@pytest.mark.slow
@pytest.mark.clause("MIX-2")
def test_a_model_compiles_in_one_graph(kernels, device):
    _, (model, _) = two_models(device)
    with torch.no_grad():
        expected = model(IDS.to(device), use_cache=False).logits
        compiled = torch.compile(lambda ids: model(input_ids=ids, use_cache=False).logits, fullgraph=True)
        torch.testing.assert_close(compiled(IDS.to(device)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.clause("ERR-3")
def test_auto_is_triton_on_a_gpu_and_plain_elsewhere(kernels):
    plain, triton = functions("torch", "cpu"), functions("triton", "cpu")
    assert triton.residual_mixing is kernels.residual_mixing
    assert functions("auto", "cpu") == functions("torch", "cuda") == plain
    assert functions("auto", "cuda") == functions("triton", "cuda") == triton


@pytest.mark.clause("ERR-2")
def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match=r"kernels: got 'cuda'; allowed: 'auto', 'torch', 'triton'"):
        CRMAAdapter(32, kernels="cuda")  # type: ignore[arg-type]


@pytest.mark.clause("ERR-2")
def test_sizes_that_the_kernels_do_not_take_name_the_plain_ones(kernels, device):
    adapter = CRMAAdapter(600, 6, 100, kernels="triton").to(device)
    with pytest.raises(ConfigError, match="kernels='torch'"):
        adapter(torch.randn(2, 600, device=device))
    adapter = CRMAAdapter(130, 65, 1, kernels="triton").to(device)
    with pytest.raises(ConfigError, match="kernels='torch'"):
        adapter(torch.randn(2, 130, device=device))


@pytest.mark.clause("ERR-3", "ERR-4")
def test_a_missing_triton_is_told_when_adapters_are_attached():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from backends.torch.functions import functions\n"
        "functions('torch', 'cuda'); functions('auto', 'cpu'); functions('auto', 'cuda')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().rpartition("\n")[2]
    assert "MissingPackageError: kernels: got no package named triton" in last
    assert "kernels='torch'" in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is told to a machine without a GPU")
@pytest.mark.clause("ERR-3")
def test_kernels_for_a_gpu_refuse_the_cpu():
    code = (
        "import torch; from backends.torch import CRMAAdapter\n"
        "try:\n    CRMAAdapter(16, kernels='triton')(torch.randn(2, 16))\n"
        f"except {DeviceUnavailableError.__name__} as error:\n    print(error)"
    )
    pytest.importorskip("triton")
    code = f"from reference.errors import {DeviceUnavailableError.__name__}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "kernels='torch'" in done.stdout, done.stderr


@pytest.mark.clause("MIX-1")
def test_the_choice_survives_a_copy(kernels):
    adapter = copy.deepcopy(CRMAAdapter(32, kernels="triton"))
    assert adapter.kernels == "triton"
    assert adapter.config == AdapterConfig(32)
