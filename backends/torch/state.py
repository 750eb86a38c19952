"""The adapter state file: safetensors, float32, stacked over layers, with the configuration in the metadata."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from backends.atomic import atomic_write
from backends.torch.certificates import AdapterState
from reference import SPEC_VERSION, AdapterConfig
from reference.errors import ConfigError, StateFileError

KEYS = ("mix_logits", "gate_logits", "bases")


class StateFile(NamedTuple):
    """Content of a state file; ``base_model`` describes the model the adapters were trained on, or is empty."""

    state: AdapterState
    config: AdapterConfig
    base_model: str


def save_state(path: Path | str, state: AdapterState, config: AdapterConfig, base_model: str = "") -> None:
    """Write ``state`` to ``path``, atomically. Raises: DiskSpaceError. Clauses: STATE-1..STATE-3. Source: ours."""
    sizes = dataclasses.asdict(config) | {"layers": len(state.bases)}
    metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(sizes)}
    if base_model:
        metadata["base_model"] = base_model
    tensors = {
        key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in zip(KEYS, state, strict=True)
    }
    atomic_write(Path(path), _sorted_metadata(safetensors.torch.save(tensors, metadata)))


def _sorted_metadata(data: bytes) -> bytes:
    """The same file with its metadata in order: the library writes them in an order that changes from run to run."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[start:]


def load_state(path: Path | str) -> StateFile:
    """Read a state file. Raises: StateFileError, naming what is wrong. Clauses: STATE-1, STATE-2, STATE-4."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise _refusal(path, f"{type(error).__name__}: {error}") from error
    if metadata.get("format") != "crma":
        raise _refusal(path, f"format {metadata.get('format')!r}")
    version = metadata.get("spec_version", "none")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) > int(SPEC_VERSION.partition(".")[0]):
        raise _refusal(path, f"spec_version {version}, while this program reads {SPEC_VERSION}")
    try:
        sizes = json.loads(metadata.get("config", ""))
        layers = sizes.pop("layers")
        config = AdapterConfig(**sizes)
    except (ValueError, TypeError, AttributeError, KeyError, ConfigError) as error:
        raise _refusal(path, f"config {metadata.get('config')!r} ({error})") from error
    if sorted(tensors) != sorted(KEYS):
        raise _refusal(path, f"tensors {sorted(tensors)}")
    state, n = AdapterState(*(tensors[key] for key in KEYS)), config.streams
    expected = ((layers, n, n), (layers,), (layers, n, config.rank, config.hidden_size))
    for key, tensor, shape in zip(KEYS, state, expected, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise _refusal(path, f"{key} {tensor.dtype} {tuple(tensor.shape)}, expected float32 {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise _refusal(path, f"{key} with NaN or infinity")
    return StateFile(state, config, metadata.get("base_model", ""))


def _refusal(path: Path | str, got: str) -> StateFileError:
    return StateFileError(
        str(path),
        got=got,
        allowed=f"a CRMA state file: safetensors with {', '.join(KEYS)} in float32 and metadata of format 'crma'",
        remedy="take an earlier checkpoint, or save the state again with save_state",
    )
