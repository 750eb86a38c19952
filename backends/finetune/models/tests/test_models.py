"""The zoo has the published architectures; random weights are the same each time, finite, and marked."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reference.errors import ConfigError, DiskSpaceError, ModelError, ProtocolError

torch = pytest.importorskip("torch", reason="pip install 'crma[finetune]'")
transformers = pytest.importorskip("transformers", reason="pip install 'crma[finetune]'")

from safetensors import SafetensorError

from backends.finetune.engines.by_name import engine_factory
from backends.finetune.methods.conditions import KNOWN
from backends.finetune.models.folder import check_model_folder, load_tokenizer
from backends.finetune.models.marker import MARKER, is_random, random_size
from backends.finetune.models.random_weights import build_random, random_model_folder
from backends.finetune.models.resolve import resolve_model
from backends.finetune.models.tokenizer import train_tokenizer, training_text
from backends.finetune.models.zoo import ZOO, find_model
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.job import Job

ROOT = Path(__file__).parents[4]

#: Sums over the shapes in the published files of weights
PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384,
    "phi-4-mini": 3_836_021_760,
    "mistral-7b-v0.3": 7_248_023_552,
    "saul-7b": 7_241_732_096,
    "gemma-2-9b": 9_241_705_984,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CRMA_CACHE", str(folder))
        yield folder


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_has_as_many_parameters_as_published(name):
    folder = random_model_folder(name, size="full")
    assert not list(folder.glob("*.safetensors"))
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert len(load_tokenizer(folder)) < config.vocab_size


def test_the_models_of_the_paper_are_found_by_name_and_id():
    assert list(ZOO) == list(PARAMETERS)
    for model in ZOO.values():
        assert find_model(model.name.upper()) is find_model(model.hub_id) is model
    assert find_model("") is find_model("gemma") is None


@pytest.mark.parametrize("name", ZOO)
def test_the_reduced_model_keeps_the_features_of_its_family(name):
    full, reduced = (
        transformers.AutoConfig.from_pretrained(random_model_folder(name, size=size)) for size in ("full", "reduced")
    )
    assert type(full) is type(reduced)
    for field in ("tie_word_embeddings", "final_logit_softcapping", "attn_logit_softcapping", "hidden_act"):
        assert getattr(full, field, None) == getattr(reduced, field, None)
    assert bool(full.sliding_window if name != "tinyllama-1.1b" else 0) == bool(getattr(reduced, "sliding_window", 0))
    rope, small = full.rope_parameters, reduced.rope_parameters
    assert {key: rope[key] for key in rope if "_factor" not in key[-7:]} == {
        key: small[key] for key in small if "_factor" not in key[-7:]
    }
    ratio = full.num_attention_heads / full.num_key_value_heads
    assert reduced.num_attention_heads / reduced.num_key_value_heads == ratio


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reduced_model_starts_near_log_vocabulary_and_learns(name, dtype):
    folder = random_model_folder(name, size="reduced")
    assert is_random(folder)
    model, tokenizer = build_random(folder, dtype, "cpu", attention="eager"), load_tokenizer(folder)
    assert next(model.parameters()).dtype == dtype
    ids = tokenizer([training_text()[2][:2000]], return_tensors="pt")["input_ids"][:, :96].repeat(2, 1)
    assert ids[0, 0] == tokenizer.bos_token_id
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    expected = math.log(len(tokenizer))
    assert abs(losses[0] - expected) < 0.15 * expected
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ZOO)
def test_jax_answers_as_torch_on_the_same_random_weights(name):
    pytest.importorskip("jax", reason="pip install 'crma[jax]'")
    import jax.numpy as jnp

    from backends.jax.decoder import load_decoder, logits

    folder = random_model_folder(name, size="reduced")
    ids = torch.from_numpy(load_tokenizer(folder)(training_text()[1][:700], return_tensors="np")["input_ids"])[:, :90]
    with torch.no_grad():
        expected = build_random(folder, torch.float32, "cpu", attention="eager")(input_ids=ids).logits
    params, config = load_decoder(folder)
    actual = torch.tensor(jnp.asarray(logits(params, config, jnp.asarray(ids.numpy()))).tolist())
    assert expected.std() > 0.3
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_in_no_file_are_refused_by_jax():
    pytest.importorskip("optax", reason="pip install 'crma[jax]'")
    pytest.importorskip("jax", reason="pip install 'crma[jax]'")
    make_engine, _ = engine_factory("jax-cpu")
    protocol = load_protocol("quickstart")
    with pytest.raises(ConfigError, match="random weights: got full size with jax-cpu") as caught:
        make_engine(Job(random_model_folder("tinyllama-1.1b", size="full", layers=1), protocol, KNOWN["frozen"], 0))
    assert "--random-weights reduced" in caught.value.remedy


def test_random_weights_are_not_quantized():
    make_engine, _ = engine_factory("torch-cpu")
    protocol = load_protocol("quickstart", quantization="4bit")
    with pytest.raises(ProtocolError, match="quantization: got '4bit' with random weights"):
        make_engine(Job(random_model_folder("tinyllama-1.1b", size="reduced"), protocol, KNOWN["frozen"], 0))


def test_full_size_weights_are_drawn_from_the_seed_in_the_dtype_that_is_asked_for(tmp_path):
    folder = random_model_folder("tinyllama-1.1b", size="full", layers=1)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two = (build_random(folder, torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers were left alone
    assert not one.training
    assert one.model.layers[0].mlp.down_proj.weight.std() > 0.01
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, other)
    other_seed = shutil.copytree(folder, tmp_path / "other")
    (other_seed / MARKER).write_text(json.dumps({"model": "tinyllama-1.1b", "size": "full", "seed": 1}))
    other = build_random(other_seed, torch.bfloat16, "cpu")
    assert not torch.equal(other.lm_head.weight, one.lm_head.weight)


def test_a_full_size_model_starts_near_log_vocabulary():
    """Of the largest vocabulary, with tied embeddings and soft caps; two of its layers."""
    folder = random_model_folder("gemma-2-9b", size="full", layers=2)
    fields = json.loads((folder / "config.json").read_text()) | {"hidden_size": 448, "intermediate_size": 1792}
    config = transformers.AutoConfig.for_model(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ids = torch.arange(100, 132)[None]
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert abs(loss - math.log(256_000)) < 0.1 * math.log(256_000)


def test_the_tokenizer_is_the_same_each_time_and_gives_every_text_back():
    one, two = (train_tokenizer(training_text()) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert (one.pad_token_id, one.bos_token_id, one.eos_token_id) == (0, 1, 2)
    assert 2000 < len(one) <= 4096
    text = "Naïve — 数学 \x00 and\n\ttabs  🦜"
    assert one.decode(one(text)["input_ids"], skip_special_tokens=True) == text
    words = "the doubly stochastic mixing matrix"
    assert len(one(words)["input_ids"]) < 12


def test_a_folder_is_built_once_and_resolved_like_any_other(cache, monkeypatch):
    folder = random_model_folder("saul-7b", size="reduced")
    marker = json.loads((folder / MARKER).read_text())
    assert marker == {"model": "saul-7b", "size": "reduced", "seed": 0}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert random_model_folder("Equall/Saul-7B-Base", size="reduced") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert resolve_model(str(folder)) == folder
    assert not list(cache.glob("*.building"))


def test_a_damaged_folder_is_refused(tmp_path):
    folder = shutil.copytree(random_model_folder("saul-7b", size="reduced"), tmp_path / "copy")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ModelError, match="cut short"):
        check_model_folder(folder)
    assert random_size(folder) == "reduced"
    (folder / "model.safetensors").unlink()
    assert random_size(folder) == "full"
    check_model_folder(folder)
    (folder / MARKER).write_text("{}")
    with pytest.raises(ModelError, match="without a seed"):
        check_model_folder(folder)
    (folder / MARKER).unlink()
    assert random_size(folder) is None
    with pytest.raises(ModelError, match=r"without the weights model\.safetensors"):
        check_model_folder(folder)
    with pytest.raises(ModelError, match=MARKER.replace(".", r"\.")):
        build_random(folder, torch.float32, "cpu")


def test_only_models_of_the_zoo_and_known_sizes_are_drawn(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"tinyllama-1\.1b, phi-4-mini"):
        random_model_folder("smollm2", size="reduced")
    with pytest.raises(ConfigError, match="full or reduced"):
        random_model_folder("saul-7b", size="tiny")  # type: ignore[arg-type]
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CRMA_CACHE", str(blocked / "cache"))
    with pytest.raises(ModelError, match="CRMA_CACHE"):
        random_model_folder("saul-7b", size="reduced")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error (os error 28)")]
)
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("CRMA_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "save_pretrained", fail)
        with pytest.raises(DiskSpaceError, match="CRMA_CACHE"):
            random_model_folder("tinyllama-1.1b", size="reduced")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    check_model_folder(random_model_folder("tinyllama-1.1b", size="reduced"))


def test_two_processes_may_want_the_same_folder_at_once(tmp_path):
    code = (
        "from backends.finetune.models.random_weights import random_model_folder\n"
        "print(random_model_folder('phi-4-mini', size='reduced'))"
    )
    environment = os.environ | {"CRMA_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(folders) == 1
    check_model_folder(Path(folders.pop()))
