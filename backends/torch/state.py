"""The adapter state file of a stack of layers, as tensors."""

from pathlib import Path
from typing import NamedTuple

import torch

from backends.atomic import atomic_write
from backends.state_file import decode_state, encode_state, read_state
from backends.torch.certificates import AdapterState
from reference import AdapterConfig


class StateFile(NamedTuple):
    """Content of a state file; ``base_model`` names the model that the adapters were trained on, in words and as the
    checksum of its configuration. Both are empty where the file does not say.
    """

    state: AdapterState
    config: AdapterConfig
    base_model: str
    base_model_sha256: str


def save_state(
    path: Path | str, state: AdapterState, config: AdapterConfig, base_model: str = "", base_model_sha256: str = ""
) -> None:
    """Write ``state`` to ``path``, atomically. Raises: DiskSpaceError. Clauses: STATE-1..STATE-3."""
    atomic_write(Path(path), encoded(state, config, base_model, base_model_sha256))


def encoded(state: AdapterState, config: AdapterConfig, base_model: str = "", base_model_sha256: str = "") -> bytes:
    """The bytes that :func:`save_state` writes. Clauses: STATE-1, STATE-2."""
    mix_logits, gate_logits, bases = (tensor.detach().to("cpu", torch.float32).numpy() for tensor in state)
    return encode_state(mix_logits, gate_logits, bases, config, base_model, base_model_sha256)


def load_state(path: Path | str) -> StateFile:
    """Read a state file. Raises: StateFileError, naming what is wrong. Clauses: STATE-1, STATE-2, STATE-4."""
    content = decode_state(read_state(path), str(path))
    state = AdapterState(*(torch.from_numpy(array.copy()) for array in content[:3]))
    return StateFile(state, content.config, content.base_model, content.base_model_sha256)
