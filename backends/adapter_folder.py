"""The folder of a LoRA in PEFT's format: weights and settings as bytes, the same for every framework."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.atomic import atomic_write
from backends.files import TEXT_LIMIT, parse_json, read_bytes
from backends.sealed import metadata_of, read_sealed, seal

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OF_CONFIG = "adapter_config_sha256"


def write_adapter(folder: Path, weights: bytes, config: bytes) -> None:
    """Write a safetensors file, sealed and with the digest of ``config``, and ``config`` beside it; each atomically.

    Raises: DiskSpaceError.
    """
    atomic_write(folder / WEIGHTS, seal(weights, {"format": "pt", _OF_CONFIG: hashlib.sha256(config).hexdigest()}))
    atomic_write(folder / CONFIG, config)


def read_adapter(
    folder: Path, *, required: bool = False, expected: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The weights and the settings of a folder that PEFT or :func:`write_adapter` wrote, each read once.

    Args:
        required: whether weights without a seal, as PEFT writes them, are refused.
        expected: SHA-256 of both files by name, from the record of the phase that wrote them.

    Raises: OSError; ValueError for bytes that are not those that were written.
    """
    weights = read_sealed(folder / WEIGHTS, required=required)
    config = read_bytes(folder / CONFIG, limit=TEXT_LIMIT)
    for name, data in ((WEIGHTS, weights), (CONFIG, config)):
        if expected is not None and hashlib.sha256(data).hexdigest() != expected.get(name):
            raise ValueError(f"{name} is not the file that its phase recorded")
    if metadata_of(weights).get(_OF_CONFIG, own := hashlib.sha256(config).hexdigest()) != own:
        raise ValueError(f"{CONFIG} is not the one that was written with {WEIGHTS}")
    settings = parse_json(config)
    if not isinstance(settings, dict):
        raise ValueError(f"{CONFIG} holds no JSON object")
    return weights, settings
