"""Small random causal language models of many families, for the tests of this folder."""

from typing import Any

import torch
from torch import nn

from backends.torch import AdapterState, CRMABackbone

#: two rows of tokens of the tiny models
IDS = torch.tensor([[5, 9, 13, 44, 3, 21, 33, 8, 51, 17], [7, 7, 50, 12, 29, 4, 40, 18, 6, 55]])

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 4.0],
}

#: name -> (model_type, what differs from SIZES, the block's matrix that writes last or "" for a mixture of experts)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "mlp.down_proj"),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}, "mlp.down_proj"),
    "mistral": ("mistral", {"sliding_window": 8}, "mlp.down_proj"),
    "gemma": ("gemma", {"head_dim": 8, "tie_word_embeddings": False}, "mlp.down_proj"),
    "gemma2": (
        "gemma2",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "tie_word_embeddings": False},
        "mlp.down_proj",
    ),
    "phi3": (
        "phi3",
        {"rope_parameters": LONG_ROPE, "max_position_embeddings": 128, "original_max_position_embeddings": 64},
        "mlp.down_proj",
    ),
    "qwen2": ("qwen2", {}, "mlp.down_proj"),
    "qwen3": ("qwen3", {"head_dim": 8}, "mlp.down_proj"),
    "olmo2": ("olmo2", {}, "mlp.down_proj"),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": None}, "mlp.dense_4h_to_h"),
    "gpt2": ("gpt2", {"num_key_value_heads": None, "intermediate_size": None, "n_inner": 32}, "mlp.c_proj"),
    "falcon": ("falcon", {"num_key_value_heads": None, "intermediate_size": None}, "mlp.dense_4h_to_h"),
    "stablelm": ("stablelm", {}, "mlp.down_proj"),
    "mixtral": ("mixtral", {"num_local_experts": 4}, ""),
}


def tiny_config(family: str, **changed: Any) -> Any:
    from transformers import AutoConfig

    model_type, differences, _ = FAMILIES[family]
    sizes = {key: value for key, value in (SIZES | differences | changed).items() if value is not None}
    return AutoConfig.for_model(model_type, **sizes)


def tiny_model(family: str, seed: int = 0, **changed: Any) -> Any:
    """Two blocks of width 32; weights large enough that rounding cannot hide a mistake."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    attention = "eager" if family == "gemma2" else None
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changed), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model.eval()


def disturb(backbone: CRMABackbone, size: float = 0.3) -> CRMABackbone:
    """Parameters away from their start values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return backbone


def activate(backbone: CRMABackbone) -> CRMABackbone:
    """The same, with gates far open."""
    with torch.no_grad():
        for gate in disturb(backbone).parameter_groups()["gate"]:
            gate.fill_(2.0)
    return backbone


def same_state(one: CRMABackbone | AdapterState, other: CRMABackbone | AdapterState) -> bool:
    """Whether all parameters agree, bit for bit."""
    states = [each.state() if isinstance(each, CRMABackbone) else each for each in (one, other)]
    return all(map(torch.equal, *states))


def everything(model: nn.Module) -> dict[str, Any]:
    """What attaching could change: keys, bits, classes, hooks, attributes, modes, who is trained."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Any] = {"keys": list(model.state_dict())}
    found |= {f"bits of {name}": tensor.detach().float().sum().item() for name, tensor in tensors.items()}
    found |= {f"trained {name}": parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        hooks = [len(hooks) for key, hooks in sorted(vars(module).items()) if key.endswith("_hooks")]
        found[f"module {name}"] = (type(module), sorted(vars(module)), hooks, module.training)
    found["left out of checkpoints"] = sorted(getattr(model, "_keys_to_ignore_on_save", None) or [])
    return found
