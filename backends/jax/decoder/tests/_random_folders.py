"""Model folders with random weights, written without transformers, for the tests of sharding."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from backends.jax.decoder.read_config import read_config
from backends.jax.decoder.weights import layout

SIZES = {"num_hidden_layers": 2, "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 0}

#: The Llama's 97 tokens, six heads and three key heads cannot be dealt out evenly to any number of devices here.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "gemma2": {
        "vocab_size": 120,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 24,
        "sliding_window": 4,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {
        "vocab_size": 104,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "sliding_window": 3,
    },
}


def write_folder(folder: Path, name: str) -> Path:
    """A folder of the family ``name``: weights that let attention be sharp, norms and biases off their start values."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": name, **SIZES, **FAMILIES[name]}))
    config = read_config(folder)
    rng = np.random.default_rng(0)
    tensors = {}
    for stack in layout(config):
        for tensor in stack.tensors:
            scale = 1.5 / stack.shape[-1] ** 0.5 if len(stack.shape) == 2 else 0.3
            if stack.path == ("embedding",):
                scale = 0.1 if config.embedding_scale else 1.0
            centre = 1 if "norm" in tensor and not config.norm_offset else 0
            tensors[tensor] = (centre + scale * rng.standard_normal(stack.shape)).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder
