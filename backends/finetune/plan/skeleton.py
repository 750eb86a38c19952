"""A model without weights: the architecture of a folder on the meta device, with PEFT's LoRA on it."""

import warnings
from pathlib import Path
from typing import Any

from backends.finetune.models.folder import load_config
from backends.finetune.models.load_errors import load_errors
from backends.finetune.protocols.protocol import LoraSection


def read_architecture(folder: Path) -> Any:
    """The configuration of the language model in a folder. Raises: ModelError."""
    return load_config(folder).get_text_config()


def with_layers(config: Any, layers: int) -> Any:
    """The same architecture with another number of decoder layers, at most as many as it has."""
    from transformers import AutoConfig

    fields = config.to_dict() | {"num_hidden_layers": layers}
    if isinstance(fields.get("layer_types"), list):
        fields["layer_types"] = fields["layer_types"][:layers]
    return AutoConfig.for_model(**fields)


def skeleton(
    config: Any, lora: LoraSection | None, *, bfloat16: bool = False, attention: str = "eager", checkpoint: bool = False
) -> Any:
    """A causal LM on the meta device, as the PyTorch engine sets it up: frozen and with LoRA; without, trained whole.

    Raises: ModelError for an architecture that cannot be built, ProtocolError for target modules that it does not have.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from backends.finetune.engines.torch.lora import LoraSlot

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    where = Path(getattr(config, "_name_or_path", "") or config.model_type)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with load_errors(where):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
            model.eval().requires_grad_(lora is None)
            if checkpoint:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.train()
        if lora is not None:
            model = LoraSlot(model, lora).model
        if checkpoint:
            model.enable_input_require_grads()
    return model
