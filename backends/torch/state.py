"""The adapter state file: safetensors, float32, stacked over layers, with the configuration in the metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from backends.atomic import atomic_write
from backends.torch.certificates import AdapterState
from reference import SPEC_VERSION, AdapterConfig
from reference.errors import ConfigError, StateFileError

KEYS = ("mix_logits", "gate_logits", "bases")


def save_state(path: Path | str, state: AdapterState, config: AdapterConfig) -> None:
    """Write ``state`` to ``path``, atomically. Raises: DiskSpaceError. Clauses: STATE-1..STATE-3. Source: ours."""
    atomic_write(Path(path), state_bytes(state, config))


def state_bytes(state: AdapterState, config: AdapterConfig) -> bytes:
    """The content of a state file."""
    metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(dataclasses.asdict(config))}
    tensors = {
        key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in zip(KEYS, state, strict=True)
    }
    return safetensors.torch.save(tensors, metadata)


def load_state(path: Path | str) -> tuple[AdapterState, AdapterConfig]:
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
    if version.partition(".")[0] != SPEC_VERSION.partition(".")[0]:
        raise _refusal(path, f"spec_version {version}, while this program reads {SPEC_VERSION}")
    try:
        config = AdapterConfig(**json.loads(metadata.get("config", "")))
    except (ValueError, TypeError, ConfigError) as error:
        raise _refusal(path, f"config {metadata.get('config')!r} ({error})") from error
    if sorted(tensors) != sorted(KEYS):
        raise _refusal(path, f"tensors {sorted(tensors)}")
    state = AdapterState(*(tensors[key] for key in KEYS))
    layers, n = state.gate_logits.numel(), config.streams
    expected = ((layers, n, n), (layers,), (layers, n, config.rank, config.hidden_size))
    for key, tensor, shape in zip(KEYS, state, expected, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise _refusal(path, f"{key} {tensor.dtype} {tuple(tensor.shape)}, expected float32 {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise _refusal(path, f"{key} with NaN or infinity")
    return state, config


def _refusal(path: Path | str, got: str) -> StateFileError:
    return StateFileError(
        str(path),
        got=got,
        allowed=f"a CRMA state file: safetensors with {', '.join(KEYS)} in float32 and metadata of format 'crma'",
        remedy="take an earlier checkpoint, or save the state again with save_state",
    )
