"""attach_crma: make an adapter the submodule ``crma`` of every decoder block of a Hugging Face causal LM."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from backends.torch.adapter import CRMAAdapter
from backends.torch.backbone import CRMABackbone
from reference.adapter import AdapterConfig
from reference.errors import ConfigError, ModelError
from reference.initialization import GATE_LOGIT, init_parameters


def attach_crma(
    model: nn.Module,
    config: AdapterConfig | None = None,
    *,
    basis: Literal["random", "principal"] = "random",
    skip_directions: int = 0,
    gate_logit: float = GATE_LOGIT,
    seed: int = 0,
) -> CRMABackbone:
    """Attach one CRMAAdapter after every decoder block of ``model``, in place.

    Each block gets the submodule ``crma`` and a subclass of its own class whose forward ends in it: so the adapter runs
    inside gradient checkpointing, the base model's state_dict keeps its keys, and PEFT sees no linear layer to target.
    The adapters are trainable; nothing else's ``requires_grad`` is touched.

    Args:
        model: a causal LM whose ``get_decoder().layers`` are its blocks (Llama, Mistral, Gemma, Phi, ...), or a
            PeftModel around one.
        config: sizes; by default the model's hidden size with 4 streams of rank 4 and K = 20.
        basis: "random" orthonormal rows, or the "principal" directions of each block's MLP output projection.
        skip_directions: with "principal", how many of the leading directions to leave out.
        gate_logit, seed: of the start values; layer l draws from (seed, l).

    Returns:
        The backbone, which holds the adapters. ``backbone.detach_from_model()`` undoes this function.

    Raises: ModelError, ConfigError. Clauses: INIT-1..INIT-4. Source: paper section 4; forum posts; the form, ours.
    """
    decoder = _decoder(model)
    blocks = list(decoder.layers)
    hidden_size = _base_model(model).config.hidden_size
    config = config or AdapterConfig(hidden_size)
    if config.hidden_size != hidden_size:
        raise ConfigError(
            "config.hidden_size",
            got=config.hidden_size,
            allowed=f"{hidden_size}, the model's",
            remedy="leave config out",
        )
    adapters = []
    for index, block in enumerate(blocks):
        start = init_parameters(
            config,
            np.random.default_rng([seed, index]),
            writer=_mlp_output_projection(block, index) if basis == "principal" else None,
            skip_directions=skip_directions,
            gate_logit=gate_logit,
        )
        adapter = CRMAAdapter(hidden_size, config.streams, config.rank, config.iterations, parameters=start)
        adapters.append(adapter.to(next(block.parameters()).device))

    original_classes = [type(block) for block in blocks]
    for block, adapter in zip(blocks, adapters, strict=True):
        block.add_module("crma", adapter)
        block.__class__ = _class_with_crma(type(block))  # type: ignore[arg-type]  # classes are hashable

    def detach() -> None:
        hook.remove()
        for block, original_class in zip(blocks, original_classes, strict=True):
            block.__class__ = original_class
            del block.crma

    backbone = CRMABackbone(adapters, base_model=_description(_base_model(model).config), detach=detach)
    hook = decoder.register_forward_pre_hook(lambda *_: backbone.prepare())
    return backbone


@cache
def _class_with_crma(block_class: type[nn.Module]) -> type[nn.Module]:
    class BlockWithCRMA(block_class):  # type: ignore[valid-type,misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output: Tensor | tuple[Any, ...] = super().forward(*args, **kwargs)
            if isinstance(output, tuple):
                return (self.crma(output[0]), *output[1:])
            return self.crma(output)

    # accelerate and FSDP find blocks by the name of their class
    BlockWithCRMA.__name__, BlockWithCRMA.__qualname__ = block_class.__name__, block_class.__qualname__
    return BlockWithCRMA


def _description(config: Any) -> str:
    """The architecture in words, the same for every release of transformers."""
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    return " ".join([str(config.model_type), *(f"{field}={getattr(config, field, None)}" for field in fields)])


def _base_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(model: nn.Module) -> Any:
    base = _base_model(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0 or not hasattr(base.config, "hidden_size"):
        raise ModelError(
            "model",
            got=type(base).__name__,
            allowed="a causal LM with get_decoder().layers and config.hidden_size (Llama, Mistral, Gemma, Phi, ...)",
            remedy="use CRMAAdapter directly after each block of this model",
        )
    if any(hasattr(block, "crma") for block in blocks):
        raise ModelError(
            "model",
            got=f"{type(base).__name__} with adapters already attached",
            allowed="a model without CRMA adapters",
            remedy="call detach_from_model() on the first backbone, or keep using it",
        )
    return decoder


def _mlp_output_projection(block: nn.Module, index: int) -> Any:
    """(d, m) in float64: the last matrix that writes into the residual stream in this block."""
    projection = getattr(getattr(block, "mlp", None), "down_proj", None)
    weight = getattr(getattr(projection, "base_layer", projection), "weight", None)
    if weight is None or not weight.is_floating_point():
        raise ModelError(
            f"layers.{index}.mlp.down_proj.weight",
            got="missing, or not in floating point (quantized?)",
            allowed="the block's MLP output projection as a floating-point matrix",
            remedy="start from basis='random'",
        )
    return weight.detach().double().cpu().numpy()
