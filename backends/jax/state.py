"""The adapter state file of a stack of layers, which PyTorch reads and writes too."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from backends.atomic import atomic_write
from backends.jax.adapter import CRMAAdapter
from backends.state_file import decode_state, encode_state, read_state
from reference import AdapterConfig
from reference.errors import NonFiniteError, ShapeError


class StateFile(NamedTuple):
    """Content of a state file; ``base_model`` names the model that the adapters were trained on, in words and as the
    checksum of its configuration. Both are empty where the file does not say.
    """

    stack: CRMAAdapter
    base_model: str
    base_model_sha256: str


def save_state(path: Path | str, stack: CRMAAdapter, base_model: str = "", base_model_sha256: str = "") -> None:
    """Write the parameters of all layers to ``path``, atomically, whatever mesh they lie on.

    Raises: ShapeError for a single layer; NonFiniteError for NaN or infinity, so that they never replace a good file;
    DiskSpaceError. Clauses: STATE-1..STATE-3.
    """
    mix_logits, gate_logits, bases = (
        np.asarray(v, np.float32) for v in (stack.mix_logits, stack.gate_logit, stack.basis)
    )
    if bases.ndim != 4:
        raise ShapeError(
            "basis",
            got=bases.shape,
            allowed="(layers, n, r, d), a stack",
            remedy="CRMAAdapter.init(config, layers=...); jax.tree.map(lambda leaf: leaf[None], adapter) for one layer",
        )
    for field, values in (("mix_logits", mix_logits), ("gate_logit", gate_logits), ("basis", bases)):
        if not np.isfinite(values).all():
            raise NonFiniteError(
                field, got="NaN or infinity", allowed="finite values only", remedy="restore the last good adapter state"
            )
    _, n, r, d = bases.shape
    config = AdapterConfig(d, n, r, stack.iterations)
    atomic_write(Path(path), encode_state(mix_logits, gate_logits, bases, config, base_model, base_model_sha256))


def load_state(path: Path | str) -> StateFile:
    """Read a state file. Raises: StateFileError, naming what is wrong. Clauses: STATE-1, STATE-2, STATE-4."""
    content = decode_state(read_state(path), str(path))
    mix_logits, gate_logits, bases = (jnp.array(array) for array in content[:3])
    stack = CRMAAdapter(mix_logits, gate_logits, bases, content.config.iterations)
    return StateFile(stack, content.base_model, content.base_model_sha256)
