"""Checkpoint of the phase under way in JAX: trainables and optimizer state, whole whatever the mesh, no pickle."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from backends.atomic import atomic_write
from backends.finetune.runs.checkpoint_file import damaged
from backends.sealed import seal


def save_checkpoint(path: Path, tree: Any, progress: dict[str, Any]) -> None:
    """Write the arrays of ``tree`` and ``progress`` (JSON) atomically. Raises: DiskSpaceError."""
    arrays = {name: np.array(leaf, order="C") for name, leaf in named(tree).items()}
    atomic_write(path, seal(safetensors.numpy.save(arrays), {"progress": json.dumps(progress)}))


def load_checkpoint(data: bytes, path: Path, like: Any) -> Any:
    """The arrays of a checkpoint, the bytes of ``path``, in the structure, and with the sharding, of ``like``.

    It may have been written on another mesh. Raises: RunFolderError for a file that does not fit.
    """
    try:
        stored = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    wanted = named(like)
    for name, leaf in wanted.items():
        found = stored.get(name)
        if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise damaged(path, f"{name} {'missing' if found is None else f'{found.dtype} {found.shape}'}")
    leaves = [jax.device_put(stored[name], leaf.sharding) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named(tree: Any) -> dict[str, jax.Array]:
    """Leaves by their paths; in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
