"""LoRA in PEFT's file format: what PEFT writes is read, what is written here PEFT loads, the rest is refused."""

import json

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import safetensors.numpy

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.decoder import logits
from backends.jax.decoder.tests.conftest import TOLERANCE, build_model
from backends.jax.lora import decoder_lora, init_lora, load_lora, save_lora, target_projections
from reference.errors import ConfigError, ModelError

scores = jax.jit(logits, compiler_options=QUICK)


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    """A random model with fused projections: (transformers' model, its weights here, configuration)."""
    from backends.jax.decoder import load_decoder

    path = tmp_path_factory.mktemp("phi3")
    build_model("phi3").save_pretrained(path)
    return path, *load_decoder(path)


def fresh(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def peft_model(path, **settings):
    """With factors that are not zero."""
    torch.manual_seed(0)
    model = peft.get_peft_model(fresh(path), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.3)
    return model


def same_logits(model, params, config, lora, scale):
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    found = scores(params, config, ids.astype(np.int32), lora=decoder_lora(lora, scale))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * largest)
    bare = scores(params, config, ids.astype(np.int32))
    assert np.abs(bare - expected).max() > 100 * TOLERANCE * largest


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["o_proj", "down_proj"]}])
def test_what_peft_saves_answers_the_same_here(phi3, tmp_path, settings):
    path, params, config = phi3
    model = peft_model(path, **{"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | settings)
    model.save_pretrained(tmp_path)
    lora, scale = load_lora(tmp_path, config)
    assert scale == (3.0 if "use_rslora" in settings else 1.5)
    same_logits(model, params, config, lora, scale)


def test_what_is_saved_here_answers_the_same_in_peft(phi3, tmp_path):
    path, params, config = phi3
    rng = np.random.default_rng(0)
    drawn = init_lora(config, list(config.projections), 3, rng)
    assert all(not factors.up.any() for factors in drawn.values())
    # So large a LoRA that it matters, and not so large that float32 itself loses more digits than the tolerance.
    lora = jax.tree.map(lambda v: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32), drawn)
    save_lora(tmp_path, lora, alpha=12, base_model=str(path))
    model = peft.PeftModel.from_pretrained(fresh(path), tmp_path).eval()
    same_logits(model, params, config, lora, 4.0)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    loaded, scale = load_lora(tmp_path, config)
    assert scale == 4.0
    jax.tree.map(np.testing.assert_array_equal, loaded, lora)


def test_start_values_are_spread_as_peft_spreads_them(phi3):
    path, _, config = phi3
    torch.manual_seed(0)
    ours = init_lora(config, ["mlp.down_proj"], 8, np.random.default_rng(0))["mlp.down_proj"].down
    model = peft.get_peft_model(fresh(path), peft.LoraConfig(r=8, target_modules=["down_proj"]))
    theirs = torch.stack([v for name, v in model.named_parameters() if "lora_A" in name]).detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.02)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1)


@pytest.mark.parametrize(
    "target", ["all-linear", ["qkv_proj"], ["o_proj", "mlp.down_proj", "no_such"], r".*layers\.\d+\.mlp\..*proj"]
)
def test_targets_are_those_that_peft_chooses(phi3, target):
    path, _, config = phi3
    model = peft.get_peft_model(fresh(path), peft.LoraConfig(r=2, target_modules=target))
    modules = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    theirs = {module.split(".", 5)[-1] for module in modules}  # base_model.model.model.layers.N.PATH
    assert len(modules) == config.layers * len(theirs)
    assert set(target_projections(config, target)) == theirs


@pytest.mark.parametrize("target", [["nothing"], ["q_proj", "lm_head"], r"model\.layers\.0\.mlp\..*", "nothing"])
def test_targets_without_a_place_in_every_layer_are_refused(phi3, target):
    with pytest.raises(ConfigError, match="target_modules"):
        target_projections(phi3[2], target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern"),
        ({"r": 5}, r"lora_A.*shape \(5, 64\)"),
        ({"r": None}, "TypeError"),
        (None, "JSONDecodeError"),
    ],
)
def test_settings_that_the_decoder_does_not_have_are_refused(phi3, tmp_path, change, message):
    config = phi3[2]
    save_lora(tmp_path, init_lora(config, ["self_attn.o_proj"], 2, np.random.default_rng(0)), 2)
    path, weights = tmp_path / CONFIG, tmp_path / WEIGHTS
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights)  # without a seal, as PEFT writes it
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_lora(tmp_path, config)


def test_tensors_that_do_not_fit_are_refused(phi3, tmp_path):
    config = phi3[2]
    save_lora(tmp_path, init_lora(config, ["self_attn.o_proj"], 2, np.random.default_rng(0)), 2)
    path = tmp_path / "adapter_model.safetensors"
    whole = safetensors.numpy.load_file(path)
    last = "base_model.model.model.layers.2.self_attn.o_proj.lora_B.weight"
    for tensors, message in (
        ({name: value for name, value in whole.items() if name != last}, "layers.2.*no such tensor"),
        (whole | {"other": whole[last]}, "other, which is no factor"),
        ({}, "no tensor"),
    ):
        safetensors.numpy.save_file(tensors, path)
        with pytest.raises(ModelError, match=message):
            load_lora(tmp_path, config)
    path.write_bytes(b"cut")
    with pytest.raises(ModelError, match="cut short"):
        load_lora(tmp_path, config)
