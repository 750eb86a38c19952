"""What the models of the zoo publish in their config.json, and what makes a small model of the same family of each.

Token ids are left out: a model with random weights has a tokenizer of its own. Source: the published config.json files.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

TINYLLAMA: Fields = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

MISTRAL_V01: Fields = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}

MISTRAL_V03: Fields = MISTRAL_V01 | {"vocab_size": 32768, "rope_theta": 1e6, "sliding_window": None}

#: LongRoPE's factors beyond 4,096 tokens, one per pair of the 96 entries of a head that are turned; 1 up to there
# fmt: off
PHI_LONG_FACTORS = [
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
]
# fmt: on


def _longrope(factors: list[float]) -> Fields:
    return {"type": "longrope", "short_factor": [1.0] * len(factors), "long_factor": factors}


PHI_4_MINI: Fields = {
    "model_type": "phi3",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "rope_scaling": _longrope(PHI_LONG_FACTORS),
    "sliding_window": 262144,
    "tie_word_embeddings": True,
}

GEMMA_2_9B: Fields = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

#: Start values of about 1 / sqrt(hidden), so that a small model with frozen random weights does more than copy.
_SMALL: Fields = {"num_hidden_layers": 4, "initializer_range": 0.1}

#: The same family with its features: grouped heads in the same ratio, windows that short texts reach, part of each head
#: turned, soft caps, tied embeddings. The vocabulary is that of the tokenizer.
SMALL_LLAMA = _SMALL | {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
SMALL_MISTRAL = _SMALL | {
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SMALL_MISTRAL_V01 = SMALL_MISTRAL | {"sliding_window": 64}
SMALL_PHI = _SMALL | {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rope_scaling": _longrope(PHI_LONG_FACTORS[::4]),
}
SMALL_GEMMA = _SMALL | {
    "hidden_size": 112,
    "intermediate_size": 448,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
}
