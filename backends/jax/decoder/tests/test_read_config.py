"""config.json of transformers 4 and 5 give one decoder; what it does not compute is refused by the field's name."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("jax", reason="pip install 'crma[jax]'")

from backends.jax.decoder import read_config
from reference.errors import ModelError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
GEMMA2 = LLAMA | {"model_type": "gemma2", "head_dim": 256}
MISTRAL = LLAMA | {"model_type": "mistral"}
PHI3 = LLAMA | {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
LONG = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}

#: The fields of version 4, those of version 5 in their place
VERSIONS = {
    "llama3": (
        LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"},
        LLAMA | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "dtype": "bfloat16", "head_dim": 128},
    ),
    "linear": (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}},
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "phi4": (
        PHI3
        | {"partial_rotary_factor": 0.75, "rope_scaling": LONG | {"long_factor": [2] * 48, "short_factor": [1] * 48}},
        PHI3
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 48,
                "long_factor": [2.0] * 48,
                "original_max_position_embeddings": 4096,
                "factor": 32.0,
            }
        },
    ),
    "gemma2": (
        GEMMA2 | {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
        GEMMA2
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": (
        MISTRAL | {"rope_theta": 1e6},
        MISTRAL | {"sliding_window": 4096, "rope_parameters": {"rope_theta": 1e6}},
    ),
}


def parse(folder, entries, generation=None):
    (folder / "config.json").write_text(json.dumps(entries))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(folder)


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_4_and_5_give_the_same_decoder(tmp_path, name):
    old, new = (parse(tmp_path, entries) for entries in VERSIONS[name])
    assert old == new


@pytest.mark.parametrize("name", VERSIONS)
def test_transformers_reads_the_same(tmp_path, name):
    """Through transformers' own reading and writing, which fills in its defaults."""
    transformers = pytest.importorskip("transformers")
    config = parse(tmp_path, VERSIONS[name][0])
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    again = read_config(tmp_path)
    ids = {"eos_token_ids": again.eos_token_ids, "pad_token_id": again.pad_token_id}  # the family's, by default
    assert again == replace(config, **ids)


def test_values_of_each_family(tmp_path):
    llama = parse(tmp_path, VERSIONS["llama3"][0])
    assert (llama.head_dim, llama.windows, llama.tied, llama.dtype) == (128, (0, 0, 0), False, "bfloat16")
    assert (llama.rope.theta, llama.rope.original_length, llama.rope.rotary_dim) == (5e5, 8192, 128)
    gemma = parse(tmp_path, GEMMA2)
    assert (gemma.windows, gemma.attention_scale, gemma.embedding_scale) == ((4096, 0, 4096), 1 / 16, 64.0)
    assert (gemma.attention_soft_cap, gemma.logit_soft_cap, gemma.tied) == (50.0, 30.0, True)
    assert parse(tmp_path, GEMMA2 | {"attn_logit_softcapping": None}).attention_soft_cap is None
    phi = parse(tmp_path, VERSIONS["phi4"][0])
    assert (phi.fused, phi.rope.rotary_dim, phi.rope.original_length) == (True, 96, 4096)
    assert phi.rope.attention_factor == pytest.approx(1.1902380714)  # sqrt(1 + ln 32 / ln 4096)
    assert phi.windows == (0, 0, 0)
    for alias in ("su", "yarn"):  # so the first releases of Phi-3 called it
        assert parse(tmp_path, PHI3 | {"rope_scaling": LONG | {"type": alias}}).rope.rope_type == "longrope"
    assert parse(tmp_path, MISTRAL | {"sliding_window": None}).windows == (0, 0, 0)
    assert parse(tmp_path, MISTRAL).windows == (4096, 4096, 4096)
    assert parse(tmp_path, MISTRAL | {"sliding_window": 10**12}).windows == (2**30,) * 3


def test_end_tokens_come_from_the_generation_config_first(tmp_path):
    entries = LLAMA | {"eos_token_id": 2, "pad_token_id": 7}
    assert parse(tmp_path, entries).eos_token_ids == (2,)
    config = parse(tmp_path, entries, {"eos_token_id": [128001, 128009]})
    assert (config.eos_token_ids, config.pad_token_id) == ((128001, 128009), 7)
    with pytest.raises(ModelError, match="eos_token_id"):
        parse(tmp_path, entries, {"eos_token_id": "</s>"})


REFUSED = [
    ("model_type", LLAMA | {"model_type": "qwen2"}, "'qwen2'"),
    ("model_type", {}, "None"),
    ("hidden_act", LLAMA | {"hidden_act": "relu"}, "'relu'"),
    ("hidden_activation", GEMMA2 | {"hidden_activation": "relu"}, "'relu'"),
    ("hidden_size", {k: v for k, v in LLAMA.items() if k != "hidden_size"}, "nothing"),
    ("num_hidden_layers", LLAMA | {"num_hidden_layers": "3"}, "'3'"),
    ("num_hidden_layers", LLAMA | {"num_hidden_layers": 0}, "0"),
    ("num_key_value_heads", LLAMA | {"num_key_value_heads": 5}, "5"),
    ("rms_norm_eps", LLAMA | {"rms_norm_eps": -1e-5}, "-1e-05"),
    ("tie_word_embeddings", LLAMA | {"tie_word_embeddings": 1}, "1"),
    ("attention_dropout", LLAMA | {"attention_dropout": 0.1}, "0.1"),
    ("resid_pdrop", PHI3 | {"resid_pdrop": 0.1}, "0.1"),
    ("quantization_config", LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ("use_bidirectional_attention", GEMMA2 | {"use_bidirectional_attention": True}, "True"),
    ("attention_bias", MISTRAL | {"attention_bias": True}, "True"),
    ("mlp_bias", PHI3 | {"mlp_bias": True}, "True"),
    ("mlp_bias", GEMMA2 | {"mlp_bias": True}, "True"),
    ("embedding_multiplier", LLAMA | {"embedding_multiplier": 12.0}, "12.0"),
    ("num_local_experts", LLAMA | {"num_local_experts": 8}, "8"),
    ("sliding_window", LLAMA | {"sliding_window": 8}, "8"),
    ("sliding_window", GEMMA2 | {"sliding_window": None}, "None"),
    ("layer_types", MISTRAL | {"layer_types": ["full_attention"] * 3}, "full_attention"),
    ("layer_types", GEMMA2 | {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ("layer_types", GEMMA2 | {"layer_types": ["full_attention"]}, "full_attention"),
    ("final_logit_softcapping", GEMMA2 | {"final_logit_softcapping": -1}, "-1"),
    ("head_dim", LLAMA | {"head_dim": 3}, "3"),
    ("rope_scaling", LLAMA | {"rope_scaling": "linear"}, "'linear'"),
    ("type", LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
    ("rope_type", LLAMA | {"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic'"),
    ("factor", LLAMA | {"rope_parameters": {"rope_type": "linear"}}, "nothing"),
    ("high_freq_factor", LLAMA | {"rope_parameters": LLAMA3 | {"high_freq_factor": 0.5}}, "0.5"),
    ("long_factor", PHI3 | {"rope_scaling": LONG | {"long_factor": [2.0] * 3}}, "[2.0, 2.0, 2.0]"),
    ("partial_rotary_factor", LLAMA | {"partial_rotary_factor": 0.5}, "0.5"),
    ("partial_rotary_factor", PHI3 | {"rope_parameters": {"partial_rotary_factor": 1.5}}, "1.5"),
    ("rope_theta", LLAMA | {"rope_theta": "1e4"}, "'1e4'"),
    ("sliding_attention", GEMMA2 | {"rope_parameters": {"sliding_attention": {"rope_theta": 1.0}}}, "rope_theta"),
]


@pytest.mark.parametrize(("field", "entries", "got"), REFUSED, ids=[f"{r[0]}-{r[2]}" for r in REFUSED])
def test_what_is_not_computed_is_refused_by_name(tmp_path, field, entries, got):
    with pytest.raises(ModelError) as caught:
        parse(tmp_path, entries)
    assert str(tmp_path / "config.json") in caught.value.field
    assert caught.value.field.endswith(field)
    assert got in str(caught.value.got)
    assert caught.value.remedy
