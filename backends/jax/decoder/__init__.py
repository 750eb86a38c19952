"""A decoder for Llama, Mistral, Gemma-2 and Phi-3 as pure functions over stacked weights."""

from backends.jax.decoder.config import DecoderConfig, RopeConfig
from backends.jax.decoder.generate import generate
from backends.jax.decoder.model import logits, loss, observed, token_losses
from backends.jax.decoder.read_config import read_config
from backends.jax.decoder.weights import load_decoder

__all__ = [
    "DecoderConfig",
    "RopeConfig",
    "generate",
    "load_decoder",
    "logits",
    "loss",
    "observed",
    "read_config",
    "token_losses",
]
