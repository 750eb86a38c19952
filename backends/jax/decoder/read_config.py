"""Read the config.json of a Hugging Face folder, of transformers 4 or 5, into a DecoderConfig.

What the decoder cannot compute is refused by the name of its field; nothing is ignored that would change a logit.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from backends.jax.decoder.config import Activation, DecoderConfig
from backends.jax.decoder.fields import REPAIR, Fields, read_fields
from backends.jax.decoder.read_rope import read_rope


class _Family(NamedTuple):
    """What transformers takes where a config.json of the family says nothing, and what the family's code has."""

    norm_epsilon: float = 1e-6
    tied: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    window: int | None = None
    missing_biases: tuple[str, ...] = ("attention_bias", "mlp_bias")
    partial_rotary: bool = False
    activation_field: str = "hidden_act"
    activation: str = "silu"


FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "llama": _Family(missing_biases=()),
        "mistral": _Family(kv_heads=8, window=4096),
        "gemma2": _Family(
            tied=True,
            head_dim=256,
            kv_heads=4,
            window=4096,
            missing_biases=("mlp_bias",),
            activation_field="hidden_activation",
            activation="gelu_pytorch_tanh",
        ),
        "phi3": _Family(norm_epsilon=1e-5, partial_rotary=True),
    }
)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
)

MOST_LAYERS = 10_000
LONGEST = 2**30  # a window that no sequence reaches, and that int32 holds

#: Fields that the decoder computes for these values only. Absent and null are always fine.
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), (0, 0.0)),
        **dict.fromkeys(("use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention"), (False,)),
        **dict.fromkeys(("qk_layernorm", "use_qk_norm", "lm_head_bias"), (False,)),
        **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1, 1.0)),
        **dict.fromkeys(("num_local_experts", "num_experts"), (0, 1)),
        **dict.fromkeys(("attention_multiplier", "quantization_config"), ()),
    }
)


def read_config(folder: str | Path) -> DecoderConfig:
    """The decoder of a model folder.

    Raises: ModelError, naming the file, the field, its value and what is supported.
    """
    fields = read_fields(Path(folder) / "config.json")
    model_type = fields.choice("model_type", tuple(FAMILIES))
    family = FAMILIES[model_type]
    for name, values in NEUTRAL.items():
        if fields.get(name) is not None and fields.get(name) != {}:
            fields.choice(name, values)
    sizes = _sizes(fields, family)
    gemma = model_type == "gemma2"
    scale = fields.number("query_pre_attn_scalar", 256) if gemma else sizes["head_dim"]
    for name in family.missing_biases:
        fields.choice(name, (False,), False)
    return DecoderConfig(
        model_type=model_type,
        **sizes,
        norm_epsilon=fields.number("rms_norm_eps", family.norm_epsilon),
        activation=ACTIVATIONS[fields.choice(family.activation_field, tuple(ACTIVATIONS), family.activation)],
        rope=read_rope(fields, sizes["head_dim"], phi=family.partial_rotary),
        windows=_windows(fields, family, sizes["layers"]),
        attention_scale=scale**-0.5,
        attention_soft_cap=fields.optional_number("attn_logit_softcapping", 50.0) if gemma else None,
        logit_soft_cap=fields.optional_number("final_logit_softcapping", 30.0) if gemma else None,
        embedding_scale=sizes["hidden_size"] ** 0.5 if gemma else None,
        norm_offset=gemma,
        sandwich_norms=gemma,
        fused=model_type == "phi3",
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        tied=fields.flag("tie_word_embeddings", family.tied),
        dtype=fields.get("dtype", fields.get("torch_dtype")),
        **_token_ids(fields, Path(folder)),
    )


def _sizes(fields: Fields, family: _Family) -> dict[str, Any]:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if (layers := fields.integer("num_hidden_layers")) > MOST_LAYERS:  # a name and a window for each are made at once
        raise fields.refusal("num_hidden_layers", layers, f"at most {MOST_LAYERS}", REPAIR)
    kv_heads = fields.integer("num_key_value_heads", family.kv_heads or heads)
    if "num_key_value_heads" in fields.entries and fields.entries["num_key_value_heads"] is None:
        kv_heads = heads
    head_dim = fields.integer("head_dim", family.head_dim or hidden // heads)
    if heads % kv_heads:
        raise fields.refusal("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}", REPAIR)
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
    }


def _windows(fields: Fields, family: _Family, layers: int) -> tuple[int, ...]:
    """The window of each layer, in tokens; 0 for full attention."""
    absent = "sliding_window" not in fields.entries
    if absent or fields.entries["sliding_window"] is None:
        window = (family.window or 0) if absent else 0
    else:
        window = min(fields.integer("sliding_window"), LONGEST)
    kinds = fields.get("layer_types")
    model_type = fields.entries["model_type"]
    if model_type == "llama" and window:
        raise fields.refusal("sliding_window", window, "null in the family llama, whose code has no window")
    if model_type != "gemma2":
        every = ["sliding_attention" if window else "full_attention"] * layers
        if kinds is not None and kinds != every:
            raise fields.refusal("layer_types", kinds, f"{every[0]} for each layer in the family {model_type}")
        return (window,) * layers
    if kinds is None:
        kinds = [("sliding_attention", "full_attention")[index % 2] for index in range(layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise fields.refusal("layer_types", kinds, f"a list of {layers} entries out of {', '.join(known)}")
    if "sliding_attention" in kinds and not window:
        raise fields.refusal("sliding_window", None, "an integer of at least 1 where layer_types has sliding_attention")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _token_ids(fields: Fields, folder: Path) -> dict[str, Any]:
    """End-of-sequence and padding ids; generation_config.json is asked first, as transformers does."""
    file = folder / "generation_config.json"
    generation = read_fields(file) if file.is_file() else Fields(str(file), {})
    eos = generation.get("eos_token_id", fields.get("eos_token_id", []))
    pad = generation.get("pad_token_id", fields.get("pad_token_id"))
    ids = eos if isinstance(eos, list) else [eos]
    if not all(type(token) is int for token in ids):
        raise fields.refusal("eos_token_id", eos, "an integer, or a list of integers", REPAIR)
    if pad is not None and type(pad) is not int:
        raise fields.refusal("pad_token_id", pad, "an integer, or null", REPAIR)
    return {"eos_token_ids": tuple(ids), "pad_token_id": pad}
