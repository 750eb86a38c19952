"""The adapter state file as bytes and NumPy arrays, the same for every backend.

Clauses: STATE-1, STATE-2, STATE-4, STATE-5. Source: ours.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from reference import SPEC_VERSION, AdapterConfig
from reference.errors import ConfigError, StateFileError

Array = NDArray[Any]
KEYS = ("mix_logits", "gate_logits", "bases")


class StateFile(NamedTuple):
    """Content of a state file: float32 arrays (L, n, n), (L,) and (L, n, r, d), their sizes, and the base model."""

    mix_logits: Array
    gate_logits: Array
    bases: Array
    config: AdapterConfig
    base_model: str


def encode_state(
    mix_logits: Array, gate_logits: Array, bases: Array, config: AdapterConfig, base_model: str = ""
) -> bytes:
    """The bytes of a state file; equal states give equal bytes. Clauses: STATE-1, STATE-2. Source: ours."""
    sizes = dataclasses.asdict(config) | {"layers": len(bases)}
    metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(sizes)}
    if base_model:
        metadata["base_model"] = base_model
    arrays = {
        key: np.ascontiguousarray(array, np.float32)
        for key, array in zip(KEYS, (mix_logits, gate_logits, bases), strict=True)
    }
    return _sorted_metadata(safetensors.numpy.save(arrays, metadata))


def decode_state(data: bytes, name: str = "state file") -> StateFile:
    """Read the bytes of a state file; ``name`` says in an error what was read.

    Raises: StateFileError, naming what is wrong. Clauses: STATE-1, STATE-2, STATE-4, STATE-5. Source: ours.
    """
    try:
        arrays = safetensors.numpy.load(data)
        metadata = _header(data).get("__metadata__") or {}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _refusal(name, f"{type(error).__name__}: {error}") from error
    if metadata.get("format") != "crma":
        raise _refusal(name, f"format {metadata.get('format')!r}")
    version = metadata.get("spec_version", "none")
    major = version.partition(".")[0]
    if not (major.isdecimal() and len(major) < 10) or int(major) > int(SPEC_VERSION.partition(".")[0]):
        raise _refusal(name, f"spec_version {version[:40]}, while this program reads {SPEC_VERSION}")
    try:
        sizes = json.loads(metadata.get("config", ""))
        layers = sizes.pop("layers")
        if missing := {field.name for field in dataclasses.fields(AdapterConfig)} - sizes.keys():
            raise KeyError(", ".join(sorted(missing)))
        config = AdapterConfig(**sizes)
        if type(layers) is not int:
            raise ConfigError("layers", got=repr(layers), allowed="an integer", remedy="count the layers")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _refusal(name, f"config {str(metadata.get('config'))[:200]!r} ({error})") from error
    if sorted(arrays) != sorted(KEYS):
        raise _refusal(name, f"tensors {sorted(arrays)}")
    n = config.streams
    expected = {
        "mix_logits": (layers, n, n),
        "gate_logits": (layers,),
        "bases": (layers, n, config.rank, config.hidden_size),
    }
    for key, shape in expected.items():
        if arrays[key].shape != shape or arrays[key].dtype != np.float32:
            raise _refusal(name, f"{key} {arrays[key].dtype} {arrays[key].shape}, expected float32 {shape}")
        if not np.isfinite(arrays[key]).all():
            raise _refusal(name, f"{key} with NaN or infinity")
    mix_logits, gate_logits, bases = (arrays[key] for key in KEYS)
    return StateFile(mix_logits, gate_logits, bases, config, metadata.get("base_model", ""))


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return header


def _sorted_metadata(data: bytes) -> bytes:
    """The same file with its metadata in order: the library writes them in an order that changes from run to run."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = _header(data)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[start:]


def _refusal(name: str, got: str) -> StateFileError:
    return StateFileError(
        name,
        got=got,
        allowed=f"a CRMA state file: safetensors with {', '.join(KEYS)} in float32 and metadata of format 'crma'",
        remedy="take an earlier checkpoint, or save the state again with save_state",
    )
