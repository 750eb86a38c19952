"""Name the base model that a state file belongs to: its architecture in words, and as a checksum."""

import hashlib
import json
from typing import Any

WORDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")

#: What fixes the function of a decoder besides its weights, under the names that transformers gives it in every family.
FIELDS = (
    *WORDS,
    "model_type",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_qkv_bias",
    "use_parallel_residual",
    "parallel_attn",
    "new_decoder_architecture",
    "multi_query",
    "alibi",
    "qk_layernorm",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "rope_parameters",
)


def describe(config: Any) -> str:
    """The architecture in words, the same for every release of transformers.

    ``config``: the configuration of the language model, as transformers reads it from config.json.
    """
    return " ".join([str(config.model_type), *(f"{field}={_value(config, field)}" for field in WORDS)])


def architecture_digest(config: Any) -> str:
    """SHA-256, in hex, of the configuration fields in FIELDS as JSON with sorted keys and without spaces.

    Fields that the configuration does not have, or that are None, are left out. Clause: STATE-2.
    """
    fields = _without_none({field: _value(config, field) for field in FIELDS})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _value(config: Any, field: str) -> Any:
    try:
        return getattr(config, field, None)
    except RuntimeError:  # Gemma 4: one value for each layer, which transformers does not give under this name
        return None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # 10000 and 10000.0 are one number, and JSON files of the same model give either
    return value
