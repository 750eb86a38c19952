"""Folders are read tensor by tensor into stacked weights, in the dtype and at the place that was asked for."""

import tracemalloc

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="folders are written by transformers")
import safetensors.numpy

from backends.jax.decoder import load_decoder, read_config
from backends.jax.decoder.tests.conftest import edit_config
from backends.jax.decoder.weights import layout


def test_each_weight_is_where_it_belongs(case):
    weights = {name: weight.detach().numpy() for name, weight in case.model.named_parameters()}
    for name, stacked in case.params["layers"].items():
        for index in range(case.config.layers):
            np.testing.assert_array_equal(stacked[index], weights.pop(f"model.layers.{index}.{name}"))
    np.testing.assert_array_equal(case.params["embedding"], weights.pop("model.embed_tokens.weight"))
    np.testing.assert_array_equal(case.params["norm"], weights.pop("model.norm.weight"))
    if "head" in case.params:
        np.testing.assert_array_equal(case.params["head"], weights.pop("lm_head.weight"))
    assert weights == {}


def test_shards_give_the_same_weights(case_of, sharded):
    params, config = load_decoder(sharded)
    case = case_of("llama3")
    assert config == case.config
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


def test_dtype_is_converted_as_torch_converts_it(case_of, folder):
    case = case_of("llama3")
    params, _ = load_decoder(folder, dtype="bfloat16")
    expected = case.model.model.norm.weight.detach().to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(np.asarray(params["norm"], np.float32), expected)
    edit_config(folder, dtype="bfloat16")
    assert load_decoder(folder)[0]["norm"].dtype.name == "bfloat16"  # as the file says
    assert load_decoder(folder, dtype="float32")[0]["norm"].dtype == np.float32


def test_the_host_holds_one_stacked_projection(folder):
    """Arrays of NumPy are counted, those of JAX on the device are not."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "head_dim": 64}
    edit_config(folder, **sizes)
    stacks = layout(read_config(folder))
    tensors = {name: np.ones(stack.shape, np.float32) for stack in stacks for name in stack.tensors}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    del tensors
    bytes_of = {}

    def place(path, array):
        bytes_of[path] = array.nbytes
        return jax.numpy.array(array, copy=True)

    load_decoder(folder, place=place)  # what is imported on the way is not counted
    tracemalloc.start()
    load_decoder(folder, place=place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(bytes_of.values())
    assert bytes_of["layers/mlp.up_proj.weight"] == largest == 8 * 512 * 256 * 4
    assert largest < peak < 1.3 * largest  # the stack, one tensor of it, and the headers
    assert sum(bytes_of.values()) > 3 * largest


def test_weights_go_to_the_given_sharding(folder):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    params, _ = load_decoder(folder, device=sharding)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {sharding}
