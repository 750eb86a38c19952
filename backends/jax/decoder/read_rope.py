"""The rotary embedding that a config.json asks for, under the names of transformers 4 and 5.

Version 4 writes rope_theta, rope_scaling (with "type" or "rope_type") and partial_rotary_factor side by side; version 5
puts all of them into rope_parameters.
"""

import math

from backends.jax.decoder.config import RopeConfig
from backends.jax.decoder.fields import REPAIR, Fields

TYPES = ("default", "linear", "llama3", "longrope")
_PHI_ALIASES = {"su": "longrope", "yarn": "longrope"}  # as the first releases of Phi-3 called it


def read_rope(fields: Fields, head_dim: int, *, phi: bool) -> RopeConfig:
    """The rotary embedding of a configuration; ``phi``: the family that may turn a part of each head only.

    Raises: ModelError, naming the field.
    """
    inner = _inner_fields(fields)
    type_field = "rope_type" if inner.get("rope_type") is not None else "type"
    rope_type = inner.get(type_field, "default")
    rope_type = _PHI_ALIASES.get(rope_type, rope_type) if phi and isinstance(rope_type, str) else rope_type
    if rope_type not in TYPES:
        raise inner.refusal(type_field, rope_type, "one of " + ", ".join(TYPES))
    holder = inner if inner.get("rope_theta") is not None else fields
    theta = holder.number("rope_theta", 10000.0)
    rotary_dim = _rotary_dim(fields, inner, head_dim, phi)
    if rope_type == "default":
        return RopeConfig("default", theta, rotary_dim)
    if rope_type == "linear":
        return RopeConfig("linear", theta, rotary_dim, factor=inner.number("factor"))
    original = _original_length(fields, inner, phi)
    if rope_type == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if high <= low:
            raise inner.refusal("high_freq_factor", high, f"more than low_freq_factor {low}", REPAIR)
        factor = inner.number("factor")
        return RopeConfig("llama3", theta, rotary_dim, factor, low, high, original_length=original)
    return RopeConfig(
        "longrope",
        theta,
        rotary_dim,
        original_length=original,
        short_factors=inner.numbers("short_factor", rotary_dim // 2),
        long_factors=inner.numbers("long_factor", rotary_dim // 2),
        attention_factor=_attention_factor(fields, inner, original),
    )


def _inner_fields(fields: Fields) -> Fields:
    for name in ("rope_scaling", "rope_parameters"):
        entries = fields.get(name)
        if entries is None:
            continue
        if not isinstance(entries, dict):
            raise fields.refusal(name, entries, "an object, or null", REPAIR)
        if nested := [key for key, value in entries.items() if isinstance(value, dict)]:
            raise fields.refusal(f"{name}.{nested[0]}", entries[nested[0]], "one rotary embedding for all layers")
        if entries:
            return Fields(f"{fields.where}: {name}", entries)
    return Fields(f"{fields.where}: rope_parameters", {})


def _rotary_dim(fields: Fields, inner: Fields, head_dim: int, phi: bool) -> int:
    holder = inner if inner.get("partial_rotary_factor") is not None else fields
    share = holder.number("partial_rotary_factor", 1.0)
    if share > 1 or (share < 1 and not phi):
        raise holder.refusal("partial_rotary_factor", share, "above 0 and up to 1" if phi else "1 in this family")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or rotary_dim < 2:
        raise fields.refusal(
            "head_dim", f"{head_dim}, of which {rotary_dim} entries are turned", "an even number of them"
        )
    return rotary_dim


def _original_length(fields: Fields, inner: Fields, phi: bool) -> int:
    """A field beside rope_parameters wins over one within: this is what transformers computes with."""
    if phi or fields.get("original_max_position_embeddings") is not None:
        return fields.integer("original_max_position_embeddings", 4096)
    if inner.get("original_max_position_embeddings") is not None:
        return inner.integer("original_max_position_embeddings")
    return fields.integer("max_position_embeddings")


def _attention_factor(fields: Fields, inner: Fields, original: int) -> float:
    """``sqrt(1 + ln factor / ln original)``, 1 up to factor 1; the file may say another."""
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor")
    if inner.get("factor") is not None:
        factor = inner.number("factor")
    else:
        factor = fields.integer("max_position_embeddings") / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
