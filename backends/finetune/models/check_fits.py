"""Whether a protocol can run on a base model at all: asked before anything is loaded or written."""

from pathlib import Path
from typing import Any

from backends.files import printable
from backends.finetune.models.folder import load_config
from backends.finetune.models.limits import limits_of
from backends.finetune.models.marker import is_random
from backends.finetune.protocols.protocol import Protocol
from reference.errors import ModelError, ProtocolError


def check_fits(model_path: Path, protocol: Protocol) -> None:
    """Refuse a base model that a protocol cannot run on.

    Raises: ProtocolError for texts longer than the model has positions for, for a LoRA wider than the model, and where
    the protocol names another quantization than the folder has; ModelError.
    """
    config = load_config(model_path)
    width = getattr(config.get_text_config(), "hidden_size", None)
    if isinstance(width, int) and protocol.lora.rank > width:
        raise ProtocolError(
            "lora.rank",
            got=protocol.lora.rank,
            allowed=f"at most {width}, the width of {model_path.name}, beyond which a rank adds nothing",
            remedy="lower it, by --set lora.rank=N; 4 to 64 suit most models",
        )
    limits_of(config).check_tokens("max_tokens", protocol.max_tokens, "lower it, by --set max_tokens=N")
    stored = stored_quantization(model_path, config)
    if is_random(model_path) and protocol.quantization != "none":
        raise ProtocolError(
            "quantization",
            got=f"{protocol.quantization!r} with random weights",
            allowed="'none', since only weights that are read from files are quantized",
            remedy="add --set quantization=none, or take a model with weights of its own",
        )
    if stored != "none" and protocol.quantization != stored:
        raise ProtocolError(
            "quantization",
            got=f"{protocol.quantization!r} for {model_path.name}, whose weights are stored in 4 bits",
            allowed=f"{stored!r}, so that what is trained is what is reported",
            remedy=f"add --set quantization={stored}, or take the model without quantization",
        )


def stored_quantization(folder: Path, config: Any) -> str:
    """How the weights of a folder are stored: "none", or "4bit" by bitsandbytes. Raises: ModelError for other ways."""
    parts = config, config.get_text_config()
    entries = next((found for part in parts if (found := getattr(part, "quantization_config", None))), None)
    if entries is None:
        return "none"
    fields = entries if isinstance(entries, dict) else entries.to_dict()
    method = fields.get("quant_method")
    if method == "bitsandbytes" and fields.get("load_in_4bit") is True:
        return "4bit"
    raise ModelError(
        f"model folder {folder}",
        got=f"weights that are quantized ({printable(method or list(fields))[:100]})",
        allowed="weights that are not, or 4 bits by bitsandbytes",
        remedy="take the model without quantization; --set quantization=4bit quantizes it when it is loaded",
    )
