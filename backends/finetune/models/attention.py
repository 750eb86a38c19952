"""Which implementation of attention a model computes with."""

from typing import Any


def default_attention(config: Any, device: str) -> str | None:
    """Plain attention on a CPU, where it is faster for short sequences, and where scores are capped (Gemma-2), which
    some releases of transformers leave out of their default; else the default.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if device == "cpu" or capped else None
