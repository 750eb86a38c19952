"""Weights spread over a mesh of devices: who holds what, and that the results are those of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from backends.jax.decoder import load_decoder, read_config
from backends.jax.decoder.sharding import make_mesh, parameter_spec, place_on, replicate, shard_batch
from backends.jax.decoder.tests._random_folders import FAMILIES, SIZES, write_folder
from backends.jax.decoder.weights import layout
from reference.errors import ConfigError, DeviceUnavailableError, ShapeError

#: Eight devices out of one core; and half, then a third of the time to compile, for programs that run for milliseconds.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
PHI4_MINI = {
    "model_type": "phi3",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
OUTPUTS, INPUTS, WHOLE = PartitionSpec(None, "model", None), PartitionSpec(None, None, "model"), PartitionSpec()


@pytest.fixture
def config_of(tmp_path):
    """A function from the fields of a config.json to the decoder's configuration."""

    def read(fields):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return read_config(tmp_path)

    return read


@pytest.mark.timeout(900)
def test_eight_devices_give_what_one_gives():
    """Losses, gradients, weights, memory, checkpoints and generated tokens, on four meshes; needs its own process."""
    pytest.importorskip("optax", reason="pip install 'crma[jax]'")
    environment = {**os.environ, "XLA_FLAGS": " ".join(FLAGS), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-m", "backends.jax.decoder.tests._eight_devices"]
    root = Path(__file__).parents[4]
    finished = subprocess.run(program, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("gradients differ by") == 4 * len(FAMILIES), finished.stdout


def test_the_rules(config_of):
    config = config_of({"model_type": "llama", **SIZES, **FAMILIES["llama"]})
    specs = {path: parameter_spec(config, f"layers/{path}", 2) for path in layer_paths(config)}
    assert {path for path, spec in specs.items() if spec == OUTPUTS} == {
        "self_attn.q_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
    }
    assert {path for path, spec in specs.items() if spec == INPUTS} == {
        "self_attn.o_proj.weight",
        "mlp.down_proj.weight",
    }
    assert {path for path, spec in specs.items() if spec == PartitionSpec(None, "model")} == {
        "self_attn.q_proj.bias",
        "mlp.gate_proj.bias",
        "mlp.up_proj.bias",
    }
    assert sum(spec == WHOLE for spec in specs.values()) == 4 + 2 + 2  # k, v, biases of o and down, norms
    assert parameter_spec(config, "layers/self_attn.k_proj.weight", 3) == OUTPUTS  # three key heads
    assert parameter_spec(config, "embedding", 2) == WHOLE  # 97 tokens
    assert parameter_spec(config, "embedding", 97) == parameter_spec(config, "head", 97) == PartitionSpec("model", None)


def test_fused_projections_are_split_by_heads_and_by_halves(config_of):
    config = config_of({**PHI4_MINI, "intermediate_size": 8190})
    qkv, gate_up = ("layers/self_attn.qkv_proj.weight", "layers/mlp.gate_up_proj.weight")
    assert [parameter_spec(config, qkv, model) for model in (2, 3, 8, 16)] == [OUTPUTS, WHOLE, OUTPUTS, WHOLE]
    assert [parameter_spec(config, gate_up, model) for model in (2, 4)] == [OUTPUTS, WHOLE]


@pytest.mark.parametrize("fields", [LLAMA_8B, PHI4_MINI])
def test_eight_devices_hold_an_eighth_of_every_matrix(config_of, fields):
    config = config_of(fields)
    matrices = [stack for stack in layout(config) if len(stack.shape) == 2]
    assert len(matrices) == len(config.projections) + (1 if config.tied else 2)
    for stack in matrices:
        assert "model" in parameter_spec(config, "/".join(stack.path), 8), stack.path


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("model", [1, 2, 3, 4, 5, 8, 16])
def test_every_parameter_has_a_place_that_fits(config_of, name, model):
    config = config_of({"model_type": name, **SIZES, **FAMILIES[name]})
    for stack in layout(config):
        shape = (config.layers, *stack.shape) if stack.stacked else stack.shape
        spec = parameter_spec(config, "/".join(stack.path), model)
        assert len(spec) <= len(shape)
        assert all(size % model == 0 for size, axis in zip(shape, spec, strict=False) if axis == "model")
        assert not stack.stacked or spec[:1] in ((), (None,))  # the layers are scanned one after the other


def test_a_mesh_of_one_device_is_fine(tmp_path):
    mesh = make_mesh(1, 1)
    folder = write_folder(tmp_path / "model", "gemma2")
    params, config = load_decoder(folder, device=mesh)
    expected, _ = load_decoder(folder)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert params["layers"]["mlp.up_proj.weight"].sharding.spec == OUTPUTS
    again, _ = load_decoder(folder, place=place_on(mesh, config))
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == jax.tree.map(lambda leaf: leaf.sharding, params)
    factor, step = replicate(mesh, (np.ones(3, np.float32), 2))
    assert factor.sharding.is_fully_replicated
    assert int(step) == 2


def test_too_few_devices_are_named():
    count = jax.device_count()
    with pytest.raises(DeviceUnavailableError) as caught:
        make_mesh(count, 8)
    assert f"data {count} x model 8 = {8 * count} devices, while there are {count} (" in str(caught.value)
    assert f"XLA_FLAGS=--xla_force_host_platform_device_count={8 * count}" in str(caught.value)
    with pytest.raises(DeviceUnavailableError, match="there are 0"):
        make_mesh(1, 1, devices=[])
    for sizes in ((0, 1), (1, -1), (1.0, 1), (True, 1)):
        with pytest.raises(ConfigError, match=r"(data|model): got .* integer of at least 1"):
            make_mesh(*sizes)


def test_batches_that_cannot_be_dealt_out_are_named():
    mesh = AbstractMesh((4, 2), ("data", "model"))
    with pytest.raises(ShapeError, match=r"batch\['ids'\]: got shape \(6, 5\).*multiple of 4"):
        shard_batch(mesh, {"ids": np.zeros((6, 5), np.int32), "mask": None})
    with pytest.raises(ShapeError, match=r"batch\[1\]: got shape \(\)"):
        shard_batch(mesh, (np.zeros((8, 5), np.int32), np.float32(1)))


def test_other_meshes_and_paths_are_named(config_of):
    config = config_of(LLAMA_8B)
    other = Mesh(np.array(jax.devices()[:1]), ("batch",))
    for build in (lambda: place_on(other, config), lambda: shard_batch(other, np.zeros((2, 2)))):
        with pytest.raises(ConfigError, match=r"mesh: got axes \('batch',\).*make_mesh"):
            build()
    for path in ("layers/self_attn.qkv_proj.weight", "embeddings", "layers/input_layernorm.bias", ""):
        with pytest.raises(ConfigError, match=r"path: got .*mlp\.down_proj, input_layernorm"):
            parameter_spec(config, path, 2)


def layer_paths(config):
    return [stack.path[1] for stack in layout(config) if stack.stacked]
