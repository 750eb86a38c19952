"""What a decoder computes besides its weights, as one hashable value, static under ``jax.jit``."""

from dataclasses import dataclass
from typing import Literal

import jax

Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeType = Literal["default", "linear", "llama3", "longrope"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: which frequencies turn the first ``rotary_dim`` entries of each head.

    ``original_length``: number of positions the model was first trained on (llama3, longrope). ``short_factors`` and
    ``long_factors``, (rotary_dim / 2), divide the frequencies of longrope for sequences up to that length, and beyond.
    ``attention_factor`` multiplies cosine and sine.
    """

    rope_type: RopeType
    theta: float
    rotary_dim: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0


@jax.tree_util.register_static
@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder of the families Llama, Mistral, Gemma-2 and Phi-3.

    A pytree without leaves: ``jax.jit`` takes it as it is, and compiles again for another one.

    ``windows``: per layer the number of keys that a query sees, itself included; 0 for all. ``norm_offset``: RMSNorm
    multiplies by 1 + w instead of w. ``sandwich_norms``: a norm behind attention and behind the MLP, before each is
    added to the residual stream. ``fused``: one projection for q, k, v, and one for gate and up. A soft cap c maps s to
    c tanh(s / c); None for no cap.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    activation: Activation
    rope: RopeConfig
    windows: tuple[int, ...]
    attention_scale: float
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float | None = None
    norm_offset: bool = False
    sandwich_norms: bool = False
    fused: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    dtype: str | None = None  # that the folder's config.json names
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Path of each projection within a layer -> (outputs, inputs)."""
        d, m, q, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        if self.fused:
            attention = {"self_attn.qkv_proj": (q + 2 * kv, d)}
            mlp = {"mlp.gate_up_proj": (2 * m, d)}
        else:
            attention = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
            mlp = {"mlp.gate_proj": (m, d), "mlp.up_proj": (m, d)}
        return attention | {"self_attn.o_proj": (d, q)} | mlp | {"mlp.down_proj": (d, m)}

    @property
    def norms(self) -> tuple[str, ...]:
        """Paths of the norms within a layer, each with weights (hidden_size,)."""
        names = ("input_layernorm", "post_attention_layernorm")
        return (*names, "pre_feedforward_layernorm", "post_feedforward_layernorm") if self.sandwich_norms else names
