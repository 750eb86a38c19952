"""What a training step with adapters keeps for its backward pass, beside the same without."""

from __future__ import annotations

from collections import Counter

import torch

from backends.torch import attach_crma
from backends.torch.conftest import tiny_model

IDS = torch.arange(3, 51).reshape(3, 16)


def kept(adapters: bool) -> Counter[int]:
    """Sizes in bytes of the storages that autograd keeps, of a token's hidden state and more per token."""
    model = tiny_model("llama").requires_grad_(False)
    model.model.embed_tokens.requires_grad_(True)
    if adapters:
        attach_crma(model)
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(IDS, use_cache=False)
    least = IDS.numel() * model.config.hidden_size * 4
    return Counter(size for tensor in storages.values() if (size := tensor.untyped_storage().nbytes()) >= least)


def test_adapters_keep_nothing_of_the_size_of_the_residual_stream() -> None:
    """They keep y, which the norm of the next block keeps as well."""
    without, with_adapters = kept(False), kept(True)
    assert sum(without.values()) > 10
    assert with_adapters == without
