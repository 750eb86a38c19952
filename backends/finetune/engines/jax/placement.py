"""Where the arrays of a run lie in JAX: on one device, or over a mesh of (data, model)."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from backends.finetune.models.cache_folder import cache_folder
from backends.jax.decoder.sharding import DATA, make_mesh, replicate, shard_batch, whole
from reference.errors import ConfigError

COMPILED_BYTES = 2**30


@dataclass(frozen=True)
class Placement:
    """Everything on one device; or, on a mesh, the weights spread over its axis "model", the rows of a batch over
    "data", and the trainables whole on every device.
    """

    where: jax.Device | Mesh

    def rows(self, batch_size: int) -> int:
        """The batch size, rounded up so that all devices have as many rows."""
        data = self.where.shape[DATA] if isinstance(self.where, Mesh) else 1
        return -(-batch_size // data) * data

    @property
    def whole(self) -> NamedSharding | None:
        """On a mesh: how an array lies that every device has a copy of."""
        return whole(self.where) if isinstance(self.where, Mesh) else None

    def replicated(self, tree: Any) -> Any:
        """The tree on the device, or whole on all of them."""
        return replicate(self.where, tree) if isinstance(self.where, Mesh) else jax.device_put(tree, self.where)

    def batch(self, arrays: Any) -> Any:
        """Rows on the device, or dealt out along "data"."""
        return shard_batch(self.where, arrays) if isinstance(self.where, Mesh) else jax.device_put(arrays, self.where)


def keep_what_is_compiled() -> None:
    """A run compiles each shape of its batches in some seconds; the next one, or a resumed one, finds them on the disk.

    Unless the user has chosen a folder for it (JAX_COMPILATION_CACHE_DIR).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)


def placement(backend: str, mesh: str | None) -> Placement:
    """Of ``jax-cpu`` or ``jax-cuda``: its first device, or a mesh such as "4x2", 4 for data times 2 for the model.

    Raises: ConfigError for a mesh that is no such pair, DeviceUnavailableError for one with too many devices.
    """
    devices = jax.local_devices(backend=backend.removeprefix("jax-"))
    if mesh is None:
        return Placement(devices[0])
    sizes = mesh.lower().split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and len(size) < 7 and int(size) > 0 for size in sizes):
        raise ConfigError(
            "--mesh",
            got=repr(mesh),
            allowed="DATAxMODEL, two integers >= 1 of six digits at most",
            remedy=f"--mesh {len(devices)}x1 trains on {len(devices)} devices, each with all the weights",
        )
    return Placement(make_mesh(int(sizes[0]), int(sizes[1]), devices))
