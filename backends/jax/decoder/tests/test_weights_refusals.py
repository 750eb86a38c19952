"""What is missing, damaged or of another model is named: file, tensor, expected and found, and the remedy."""

import json

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("torch", reason="folders are written by transformers")

from backends.jax.decoder import load_decoder
from backends.jax.decoder.tests.conftest import edit_config, rewrite
from reference.errors import DeviceUnavailableError, ModelError

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def refusal(folder, error=ModelError, **options):
    with pytest.raises(error) as caught:
        load_decoder(folder, **options)
    return str(caught.value)


def test_a_missing_shard_is_named(sharded):
    name = sorted(sharded.glob("*.safetensors"))[1].name
    (sharded / name).unlink()
    message = refusal(sharded)
    assert f"{sharded / name}: got no such file" in message
    assert "model.safetensors.index.json says it holds" in message


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_shard_that_is_cut_short_is_named(sharded, keep):
    path = sorted(sharded.glob("*.safetensors"))[1]
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    message = refusal(sharded)
    assert str(path) in message
    assert "copy or download the file again" in message
    if keep == -1:
        assert f"got {len(data) - 1} bytes, cut short; allowed: {len(data)} bytes" in message


def test_a_file_that_is_too_long_is_named(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"\0")
    assert "bytes, as its header says" in refusal(folder)


def test_a_wrong_shape_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({Q_PROJ: np.zeros((5, 64), np.float32)}))
    message = refusal(folder)
    assert f"model.safetensors: {Q_PROJ}: got shape (5, 64); allowed: shape (96, 64)" in message


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop(Q_PROJ))
    assert f"{Q_PROJ}: got no such tensor" in refusal(folder)


def test_a_tensor_that_a_shard_lacks_is_named(sharded):
    index = sharded / "model.safetensors.index.json"
    name = json.loads(index.read_text())["weight_map"][Q_PROJ]
    rewrite(sharded, lambda tensors: tensors.pop(Q_PROJ), name)
    assert f"{name}: got a file without {Q_PROJ}" in refusal(sharded)


def test_an_unexpected_tensor_is_named(folder):
    bias = Q_PROJ.replace("weight", "bias")
    rewrite(folder, lambda tensors: tensors.update({bias: np.zeros(96, np.float32)}))
    message = refusal(folder)
    assert f"{bias}: got 1 unexpected tensors" in message
    assert "attention_bias False" in message


def test_stored_frequencies_and_an_equal_tied_head_are_fine(folder):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(12, np.float32)}
    rewrite(folder, lambda tensors: tensors.update(extra))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert "head" not in load_decoder(folder)[0]
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    assert "tie_word_embeddings to false" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_is_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert f"{folder / name}: got weights as pickle" in message
    assert "save_pretrained(new_folder)" in message


def test_a_folder_that_is_none_is_named(tmp_path, folder):
    assert "config.json: got no such file" in refusal(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "a JSON list"),
        ("{}", "weight_map None"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "names of files in the folder"),
        ('{"weight_map": {"a": 3}}', "names of files in the folder"),
    ],
)
def test_a_damaged_index_is_named(sharded, text, words):
    (sharded / "model.safetensors.index.json").write_text(text)
    message = refusal(sharded)
    assert "model.safetensors.index.json" in message
    assert words in message


def test_dtypes_that_cannot_be_are_named(folder):
    message = refusal(folder, DeviceUnavailableError, dtype="float64")
    assert "JAX has x64 off" in message
    assert "JAX_ENABLE_X64=1" in message
    assert "allowed: float32, bfloat16, float16, float64" in refusal(folder, dtype="int8")
    assert "got 'quarter'" in refusal(folder, dtype="quarter")
    edit_config(folder, dtype="float8_e4m3fn")
    assert "float8_e4m3fn" in refusal(folder)
    rewrite(folder, lambda tensors: tensors.update({Q_PROJ: np.zeros((96, 64), np.int8)}))
    assert f"{Q_PROJ}: got dtype I8" in refusal(folder, dtype="float32")


def test_tensors_of_different_dtypes_need_a_choice(folder):
    edit_config(folder, dtype=None)
    assert load_decoder(folder)[0]["norm"].dtype == np.float32  # as stored
    rewrite(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].astype(np.float16)}))
    assert "float16 and float32" in refusal(folder)
    params, _ = load_decoder(folder, dtype="float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_a_device_without_memory_is_an_error_with_a_remedy(folder):
    def place(path, array):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    message = refusal(folder, place=place)
    assert "embedding" in message
    assert "bfloat16" in message
