"""Compile time does not depend on the depth: the program is the same, whatever the number of layers."""

import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
import jax.numpy as jnp

from backends.jax.decoder import DecoderConfig, RopeConfig, loss
from backends.jax.decoder.weights import layout

DEPTHS = (2, 8, 42)


def lowered(layers):
    """Loss and gradients of a Gemma-2 of ``layers`` layers, not yet compiled. Holds no weights."""
    config = DecoderConfig(
        model_type="gemma2",
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=16,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        rope=RopeConfig("default", 10000.0, 16),
        windows=(8, 0) * (layers // 2),
        attention_scale=0.25,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        embedding_scale=8.0,
        norm_offset=True,
        sandwich_norms=True,
        tied=True,
    )
    params: dict[str, Any] = {"layers": {}}
    for stack in layout(config):
        holder, leading = (params["layers"], (layers,)) if stack.stacked else (params, ())
        holder[stack.path[-1]] = jax.ShapeDtypeStruct(leading + stack.shape, jnp.float32)
    ids = jax.ShapeDtypeStruct((2, 32), jnp.int32)
    # A constant of its own keeps compiled programs of an earlier round from being taken again.
    unique = replace(config, norm_epsilon=1e-6 * (1 + time.perf_counter_ns() % 10**6 / 10**7))
    return jax.jit(jax.value_and_grad(loss)).lower(params, unique, ids, ids)


def test_the_program_is_the_same_for_each_depth():
    """All that differs are sizes of arrays and constants: the lines, once their numbers are taken out, are equal."""
    operations = []
    for layers in DEPTHS:
        lines = lowered(layers).as_text().splitlines()
        operations.append([match[1] for line in lines if (match := re.search(r"= \"?(?:call @)?([a-z_.]+)", line))])
    assert len(operations[0]) > 500
    assert operations[0] == operations[1] == operations[2]


@pytest.mark.slow
def test_compile_time_does_not_depend_on_the_depth():
    seconds: dict[int, list[float]] = {layers: [] for layers in DEPTHS}
    lowered(2).compile()  # what is initialised once
    for _ in range(5):
        for layers in DEPTHS:
            started = time.process_time()
            lowered(layers).compile()
            seconds[layers].append(time.process_time() - started)
    fastest = [min(values) for values in seconds.values()]
    print({layers: np.round(values, 2).tolist() for layers, values in seconds.items()})
    assert max(fastest) < 1.2 * min(fastest), seconds
