"""Where the arrays of a run lie in JAX: on one device, or over a mesh of (data, model)."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from jax.sharding import Mesh, NamedSharding

from backends.finetune.models.cache_folder import cache_folder
from backends.jax.decoder.sharding import DATA, make_mesh, replicate, shard_batch, whole
from reference.errors import ConfigError

COMPILED_BYTES = 2**30
LOCK_SECONDS = 10  # as JAX waits for the lock of its cache


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

    They lie in a folder for each kind of processor in the cache, so that none runs on one that lacks its instructions.
    Nothing is done where the user has chosen a folder (JAX_COMPILATION_CACHE_DIR).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = cache_folder() / "jax" / hashlib.sha256(_processor().encode()).hexdigest()[:12]
        _remove_unfinished(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a hundred small ones take seconds, too


def _processor() -> str:
    """Model and instruction set of the processor, as the system says it."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    lines = (line for line in first.splitlines() if line.startswith(("model name", "flags", "CPU ", "Features")))
    return "\n".join([platform.machine(), *lines])


def _remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed has left, which JAX would try to read each time and never write again.

    JAX writes KEY-cache and then KEY-atime, under the lock that it also holds to read and to evict.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=LOCK_SECONDS):
            for entry in folder.glob("*-cache"):
                if not entry.with_name(entry.name.removesuffix("cache") + "atime").is_file():
                    entry.unlink()
    except (OSError, Timeout):  # no such folder yet, or none that can be written to: then JAX compiles
        return


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
