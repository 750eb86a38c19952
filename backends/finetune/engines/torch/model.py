"""The base model in PyTorch: precision, quantization, attention, gradient checkpointing."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.marker import is_random
from backends.finetune.models.random_weights import build_random
from backends.finetune.models.weights import load_weights
from backends.finetune.protocols.protocol import Protocol
from reference.errors import MissingPackageError, ModelError


def load_base(model_path: Path, protocol: Protocol, device: torch.device, *, trainable: bool = False) -> Any:
    """The causal LM of a folder, frozen, in evaluation mode, on ``device``.

    ``trainable``: its own parameters are to be trained, so they are float32 whatever the precision.

    What the folder holds and what the protocol says must agree, and what was loaded decides what follows.

    Raises: as :func:`check_fits` and :func:`load_weights`; MissingPackageError.
    """
    check_fits(model_path, protocol)
    dtype = torch.bfloat16 if protocol.precision == "bfloat16" and not trainable else torch.float32
    four_bits = _four_bits() if protocol.quantization == "4bit" else None
    if is_random(model_path):
        model = build_random(model_path, dtype, device)
    else:
        model = load_weights(model_path, dtype, device, four_bits=four_bits)
    _keep_differentiable(model)
    model.eval().requires_grad_(False)
    if protocol.gradient_checkpointing:
        _checkpoint(model)
    return model


def round_frozen_linears(model: Any) -> None:
    """Keep the weights of frozen linear layers in bfloat16, which autocast would make of them in every forward pass:
    the same products, to the bit. A matrix that the embedding shares stays as it is.
    """
    shared = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight is not shared and not module.weight.requires_grad:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)


def _checkpoint(model: Any) -> None:
    """Recompute each block in the backward pass. transformers does so in training mode only, so dropout goes to 0.

    Raises: ModelError if the model computes otherwise in that mode even so.
    """
    ids = torch.arange(3, 11, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        _turn_off_dropout(model)
        passes = [model(input_ids=ids, use_cache=False).logits for _ in range(2)]
    if not all(torch.equal(logits, expected) for logits in passes):
        raise ModelError(
            "gradient_checkpointing",
            got=f"a {type(model).__name__}, which computes otherwise in training mode, where checkpointing works",
            allowed="a model without noise of its own (Llama, Mistral, Gemma, Phi-3, Qwen, ...)",
            remedy="set gradient_checkpointing=false",
        )


def _turn_off_dropout(model: Any) -> None:
    """As modules, as numbers that modules keep, and as numbers in the configuration that they read."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    for owner in (*model.modules(), *(module.config for module in model.modules() if hasattr(module, "config"))):
        for name, value in list(vars(owner).items()):
            if "drop" in name and isinstance(value, float):
                setattr(owner, name, 0.0)


def _keep_differentiable(model: Any) -> None:
    """bitsandbytes packs the weights of a CPU anew for inference when they are first used in evaluation mode, the mode
    that we train in; of that form it has other products and no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "quantization 4bit",
            got="no package named bitsandbytes",
            allowed="an installation with bitsandbytes",
            remedy="pip install 'crma[quantization]', or add --set quantization=none",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
