"""Files of tensors, no pickle; and the checkpoint of the phase under way: trainables and optimizer moments."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from backends.atomic import atomic_write
from backends.finetune.runs.checkpoint_file import damaged, damaged_phase
from backends.sealed import read_sealed, seal

Optimizer = torch.optim.Optimizer


def save_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, progress: dict[str, Any]
) -> None:
    """Write ``parameters``, their optimizer state and ``progress`` (JSON) atomically. Raises: DiskSpaceError."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_checkpoint(data: bytes, path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Restore parameters and optimizer state from the bytes of ``path``. Raises: RunFolderError; then nothing is
    changed.
    """
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    for name, parameter in parameters.items():
        stored = tensors.get(f"parameter/{name}")
        if stored is None or stored.shape != parameter.shape:
            raise damaged(path, f"{name} {'missing' if stored is None else tuple(stored.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            optimizer.state[parameter] = _optimizer_state(tensors, name, parameter)


def _optimizer_state(tensors: Mapping[str, Tensor], name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = {}
    for full_name, tensor in tensors.items():
        key, _, owner = full_name.partition("/")
        if owner == name and key != "parameter":
            # Adam counts its steps on the CPU; the moments live beside their parameter
            state[key] = tensor if tensor.ndim == 0 else tensor.to(parameter.device)
    return state


def safetensors_of(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file."""
    return safetensors.torch.save({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A file of this run, sealed, atomically. Raises: DiskSpaceError."""
    atomic_write(path, seal(safetensors_of(tensors), metadata))


def read_tensors(path: Path, device: Any) -> dict[str, Tensor]:
    """What :func:`write_tensors` wrote. Raises: RunFolderError."""
    try:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load(read_sealed(path)).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_phase(path, f"{type(error).__name__}: {error}") from error
