"""attach_crma on small random models of many families. Clauses: MIX-8, MIX-10, INIT-3."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

import reference
from backends.torch import attach_crma, attached_backbone
from backends.torch.conftest import FAMILIES, IDS, activate, everything, same_state, tiny_config, tiny_model
from backends.torch.decoder import find_decoder
from backends.torch.writer import writers
from reference.errors import ModelError

families = pytest.mark.parametrize("family", FAMILIES)


def trained(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters() if ".crma." not in name}


@families
def test_closed_disabled_and_detached_leave_every_bit(family: str) -> None:
    model = tiny_model(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    ids = IDS.repeat(1, 8)  # 80 tokens: longer than the sliding window, and than phi3's original length
    bare = model(ids).logits
    before = everything(model.train()), trained(model)
    backbone = attach_crma(model, gate_logit=-1e4)
    assert [parameter.requires_grad for parameter in backbone.parameters()] == [True] * 6
    assert all(module.training for module in model.modules())
    assert [key for key in model.state_dict() if ".crma." not in key] == before[0]["keys"]
    assert trained(model) == before[1]
    assert torch.equal(model.eval()(ids).logits, bare)
    activate(backbone)
    assert (model(ids).logits - bare).abs().max() > 0.05 * bare.abs().max()
    with backbone.disabled():
        assert torch.equal(model(ids).logits, bare)
    model.train()
    backbone.detach_from_model()
    backbone.detach_from_model()  # a second time does nothing
    assert everything(model) == before[0]
    assert torch.equal(model.eval()(ids).logits, bare)


@families
def test_generation_with_and_without_a_cache_and_in_a_padded_batch(family: str) -> None:
    model = tiny_model(family)
    bare = model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    activate(attach_crma(model))
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached, plain = (model.generate(IDS, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, bare)
    batch, mask = IDS.clone(), torch.ones_like(IDS)
    batch[1, :4], mask[1, :4] = 0, 0
    padded = model.generate(batch, attention_mask=mask, **settings)
    for row, start in enumerate((0, 4)):
        alone = model.generate(IDS[row : row + 1, start:], **settings)
        assert torch.equal(padded[row, start:], alone[0])


@families
def test_gradient_checkpointing_changes_no_bit_and_recomputes_the_adapters(family: str) -> None:
    found = []
    for calls, checkpointing in ((2, False), (4, True)):  # each adapter once more in the backward pass
        model = tiny_model(family).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        counted: list[int] = []
        for adapter in activate(attach_crma(model)).adapters:
            adapter.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        assert len(counted) == calls
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert all(gradients[name].any() for name, _ in model.named_parameters() if ".crma." in name)
        found.append({"loss": loss.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.clause("MIX-2")
@families
def test_hidden_states_are_those_after_the_adapters_of_the_reference(family: str) -> None:
    model = tiny_model(family)
    count = len(model(IDS, output_hidden_states=True).hidden_states)
    backbone = activate(attach_crma(model))
    calls: list[tuple[Any, Any]] = []
    backbone.adapters[0].register_forward_hook(lambda module, args, output: calls.append((args[0], output)))
    hidden_states = model(IDS, output_hidden_states=True).hidden_states
    assert len(hidden_states) == count == 3
    x, y = (value.detach().numpy() for value in calls[0])
    assert np.array_equal(hidden_states[1].detach().numpy(), y)
    parameters = reference.AdapterParameters(*(tensor[0].numpy() for tensor in backbone.state()))
    expected = reference.adapter_forward(x, parameters)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - x).max() > 1e-3


@families
def test_base_in_bfloat16_leaves_the_adapters_in_float32(family: str) -> None:
    model = tiny_model(family)
    backbone = activate(attach_crma(model))
    state = backbone.state()
    exact = model(IDS).logits
    model.to(torch.bfloat16)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert same_state(backbone, state)
    rounded = model(IDS).logits
    assert rounded.dtype == torch.bfloat16
    if family != "mixtral":  # rounding may choose another expert
        assert (rounded.float() - exact).abs().max() < 0.2 * exact.abs().max()
    backbone.detach_from_model()
    assert next(iter(attach_crma(model).parameters())).dtype == torch.float32  # attached to a bfloat16 model


@pytest.mark.clause("INIT-3")
@families
def test_the_writer_is_found_by_what_the_block_computes(family: str) -> None:
    model, path = tiny_model(family), FAMILIES[family][2]
    if not path:
        with pytest.raises(ModelError, match=r"layers\.0: got several matrices .*basis='random'"):
            attach_crma(model, basis="principal")
        return
    decoder = find_decoder(model)
    for block, found in zip(decoder.blocks, writers(model, decoder), strict=True):
        module: Any = block.get_submodule(path)
        weight = module.weight.detach().double()
        stored = weight.T if type(module).__name__ == "Conv1D" else weight
        assert torch.equal(torch.from_numpy(found), stored)
    backbone = attach_crma(model, reference.AdapterConfig(32, streams=2, rank=2), basis="principal")
    start = reference.init_parameters(backbone.config, np.random.default_rng([0, 1]), writer=found)
    assert torch.equal(backbone.state().bases[1], torch.tensor(start.basis, dtype=torch.float32))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_saved_base_model_is_the_base_alone(family: str, tmp_path: Any) -> None:
    model = tiny_model(family)
    bare = model(IDS).logits
    backbone = activate(attach_crma(model))
    model.save_pretrained(tmp_path / "attached")
    backbone.detach_from_model()
    model.save_pretrained(tmp_path / "bare")
    first, second = (folder.joinpath("model.safetensors").read_bytes() for folder in sorted(tmp_path.iterdir()))
    assert first == second
    attention = "eager" if family == "gemma2" else None
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "attached", attn_implementation=attention)
    assert torch.equal(again.eval()(IDS).logits, bare)


def test_a_copy_has_adapters_of_its_own() -> None:
    model = tiny_model("llama")
    bare = model(IDS).logits
    backbone = activate(attach_crma(model))
    active = model(IDS).logits
    copied = copy.deepcopy(model)
    with backbone.disabled():
        assert torch.equal(copied(IDS).logits, active)
    own = attached_backbone(copied)
    assert own.names == backbone.names
    assert own.base_model_sha256 == backbone.base_model_sha256
    with torch.no_grad():
        for gate in own.parameter_groups()["gate"]:
            gate.fill_(-1e4)
    assert torch.equal(copied(IDS).logits, bare)
    assert torch.equal(model(IDS).logits, active)
    own.detach_from_model()
    assert everything(copied) == everything(tiny_model("llama"))
    assert torch.equal(model(IDS).logits, active)
    with pytest.raises(ModelError, match="no CRMA adapters"):
        attached_backbone(copied)


def test_two_models_in_one_process_do_not_meet() -> None:
    first, second = tiny_model("llama"), tiny_model("llama")  # of one class
    bare = second(IDS).logits
    one = activate(attach_crma(first))
    active = first(IDS).logits
    assert torch.equal(second(IDS).logits, bare)
    two = attach_crma(second, gate_logit=-1e4)
    assert type(first.model.layers[0]) is type(second.model.layers[0])
    two.detach_from_model()
    assert torch.equal(first(IDS).logits, active)
    with one.disabled():
        assert torch.equal(first(IDS).logits, bare)


def test_an_accelerate_hook_on_the_blocks_does_not_silence_the_adapters() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama")
    bare = model(IDS).logits
    places = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    dispatch = partial(accelerate.dispatch_model, model, dict.fromkeys(places, "cpu"), main_device="cpu")
    dispatch(force_hooks=True)
    assert "forward" in vars(model.model.layers[0])
    backbone = activate(attach_crma(model))
    active = model(IDS).logits
    assert (active - bare).abs().max() > 0.1
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(model(IDS).logits, active)
    dispatch(force_hooks=True)  # the other order: attached first, hooks afterwards
    assert torch.equal(model(IDS).logits, active)
    backbone.detach_from_model()
    assert torch.equal(model(IDS).logits, bare)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(model(IDS).logits, bare)


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_decoder_without_a_language_head_carries_it_too(kind: str) -> None:
    model = getattr(transformers, kind)(tiny_config("llama")).eval()
    bare = model(IDS[:, :4])[0]
    activate(attach_crma(model))
    assert not torch.equal(model(IDS[:, :4])[0], bare)


def test_the_language_model_within_a_multimodal_one() -> None:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=tiny_config("llama"),
        image_token_index=59,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    backbone = attach_crma(model)
    assert len(backbone.adapters) == 2
    assert all("language_model" in name for name in backbone.names)
    assert backbone.base_model.startswith("llama hidden_size=32")
