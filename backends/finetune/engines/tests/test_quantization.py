"""A run on a base model in 4 bits: its weights stay as they are, and what is trained learns on top of them."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install 'crma[quantization]'")

from backends.finetune.conftest import adapters, measured, tiny_protocol
from backends.finetune.engines.torch.engine import TorchEngine
from backends.finetune.engines.torch.model import load_base
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.tests.test_base_loading import edit, rewrite
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.runs.results import read_results
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.job import Job
from reference.errors import ModelError

FOUR_BITS = ("--set", "quantization=4bit")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    """The tiny model with sizes that 4-bit kernels take."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "wider-llama"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    config = LlamaConfig.from_pretrained(
        tiny_model, hidden_size=128, intermediate_size=128, head_dim=64, initializer_range=0.05
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def protocol(tmp_path, model):
    return load_protocol(str(tiny_protocol(tmp_path, model)), FOUR_BITS[1:])


def engine_of(folder, protocol):
    return TorchEngine(Job(folder, protocol, parse_condition("modular"), 0), "cpu")


def packed(engine):
    """The base model's packed weights, by name."""
    kind = bitsandbytes.nn.Params4bit
    return {name: value for name, value in engine.model.named_parameters() if isinstance(value, kind)}


@pytest.mark.clause("CL-5")
def test_a_run_in_four_bits_learns_and_frozen_drifts_by_exactly_zero(tmp_path, model, crma, finetune_command):
    more = (*FOUR_BITS, "--model", str(model))
    code, _, error = crma(finetune_command(tmp_path / "run", *more))
    assert code == 0, error
    results = read_results(tmp_path / "run")
    frozen = results.metrics("frozen", 0)
    assert frozen is not None
    assert (frozen.drift_per_task == 0.0).all()
    for line in measured(tmp_path / "run"):
        assert sum(line["losses"][-2:]) < sum(line["losses"][:2])
    again = tmp_path / "again"
    assert crma(finetune_command(again, *more))[0] == 0
    assert adapters(again) == adapters(tmp_path / "run")


def test_linear_layers_are_packed_and_nothing_of_them_is_trained(model, protocol):
    engine = engine_of(model, protocol)
    weights = packed(engine)
    assert len(weights) == 2 * 7  # of two blocks of a Llama
    assert all(weight.dtype == torch.uint8 and not weight.requires_grad for weight in weights.values())
    trained = {name for name, value in engine.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name or "crma" in name for name in trained)
    assert all(value.dtype == torch.float32 for name, value in engine.model.named_parameters() if name in trained)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    engine.begin_phase(0, 2)
    batch = encoded(model, protocol, 1)
    for index in range(2):
        engine.step([batch], index)
    assert all(torch.equal(weight, before[name]) for name, weight in packed(engine).items())


def test_gradients_are_those_of_the_weights_that_four_bits_stand_for(tmp_path, model, protocol):
    """Against a model in float32 that holds them; what remains is the rounding of products to bfloat16."""
    plain = load_protocol(str(tiny_protocol(tmp_path, model)))
    ours, theirs = (engine_of(model, each) for each in (protocol, plain))
    values = dict(theirs.model.named_parameters())
    with torch.no_grad():
        for name, weight in packed(ours).items():
            values[name].copy_(bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state))
    found = []
    for engine in (ours, theirs):
        engine.begin_phase(0, 4)
        batch = encoded(model, protocol)
        engine.scores([batch])  # what is measured first must not change what is trained then
        draws = torch.Generator().manual_seed(1)
        assert engine.slot is not None
        for parameter in engine.slot.parameters().values():  # B starts at zero, and with it the gradient of A
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
        engine._backward(batch, batch.answer_tokens)
        found.append({name: p.grad for name, p in engine._trainables().items()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        expected = found[1][name]
        assert gradient is not None
        assert expected is not None
        assert expected.norm() > 0, name
        assert (gradient - expected).norm() <= 0.1 * expected.norm(), name


@pytest.fixture
def stored(model, protocol, tmp_path):
    """The model in a folder that holds it in 4 bits."""
    folder = tmp_path / "stored"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    load_base(model, protocol, torch.device("cpu")).save_pretrained(folder)
    return folder


def test_a_folder_in_four_bits_trains_as_one_that_is_quantized_when_it_is_loaded(model, stored, protocol):
    norms = []
    for folder in (model, stored):
        engine = engine_of(folder, protocol)
        engine.begin_phase(0, 2)
        batch = encoded(model, protocol)
        engine.scores([batch])  # bitsandbytes packs anew when a model first answers
        norms.append([engine.step([batch], index) for index in range(2)])
    assert norms[0] == norms[1]


@pytest.mark.parametrize("condition", ["frozen", "full"])
def test_a_folder_in_four_bits_needs_a_protocol_that_says_so(condition, tmp_path, stored, crma, finetune_command):
    more = ("--model", str(stored), "--conditions", condition)
    code, _, error = crma(finetune_command(tmp_path / "run", *more))
    assert code == 2
    assert "quantization: got 'none' for stored, whose weights are stored in 4 bits" in error
    assert not (tmp_path / "run").exists()
    code, _, error = crma(["plan", finetune_command(tmp_path)[1], *more])
    assert (code, "stored in 4 bits" in error) == (2, True)
    code, _, error = crma(finetune_command(tmp_path / "run", *more, *FOUR_BITS))
    assert code == (2 if condition == "full" else 0), error


UP = "model.layers.0.mlp.up_proj.weight"
DAMAGED = {
    "no codes": (lambda tensors: tensors.pop(UP), UP),
    "no scales": (lambda tensors: tensors.pop(f"{UP}.absmax"), f"{UP}.absmax"),
    "no state": (lambda tensors: tensors.pop(f"{UP}.quant_state.bitsandbytes__nf4"), UP),
    "codes cut short": (lambda tensors: tensors.update({UP: tensors[UP][:-8]}), UP),
    "scales cut short": (lambda tensors: tensors.update({f"{UP}.absmax": tensors[f"{UP}.absmax"][:-8]}), "up_proj"),
    "scales of NaN": (lambda tensors: tensors[f"{UP}.nested_absmax"].fill_(float("nan")), "up_proj"),
    "no head": (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_packed_weights_that_do_not_fit_each_other_are_refused_by_name(kind, stored, protocol):
    change, named = DAMAGED[kind]
    rewrite(stored, change)
    with pytest.raises(ModelError) as caught:
        load_base(stored, protocol, torch.device("cpu"))
    assert named in str(caught.value)


def test_a_configuration_that_only_says_four_bits_is_refused(tmp_path, model, stored, protocol):
    """And one that does not say what the weights are."""
    quantization = json.loads((stored / "config.json").read_text())["quantization_config"]
    edit(stored, quantization_config=None)
    folder = shutil.copytree(model, tmp_path / "claims")
    edit(folder, quantization_config=quantization)
    for path, words in ((folder, "in 4 bits that are not whole"), (stored, "dtype U8")):
        with pytest.raises(ModelError, match=words):
            load_base(path, protocol, torch.device("cpu"))


def _examples():
    from backends.finetune.tasks.task import Example

    return [Example("abc", "defg"), Example("say", " what else")]


def encoded(model, protocol, count=2):
    """The first examples as a batch, one a row."""
    encoder = Encoder(load_tokenizer(model), protocol)
    rows = [[example] for example in encoder.encode(_examples(), "made up")]
    return encoder.batch(rows[:count])
