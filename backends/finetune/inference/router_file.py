"""A router's file: centroids as safetensors, all else as JSON in its metadata, sealed."""

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from backends.atomic import atomic_write
from backends.files import parse_json
from backends.sealed import metadata_of, read_sealed, seal
from reference.errors import StateFileError

FORMAT, VERSION = "crma-router", 2


class RouterContent(NamedTuple):
    """Task names, centroids (T, D) float32, threshold, name of the embedding, and the quantile of the threshold."""

    tasks: tuple[str, ...]
    centroids: NDArray[np.float32]
    threshold: float
    embedding: str
    reject: float


def write_router(path: Path, content: RouterContent) -> None:
    """Write ``content``, atomically; equal contents give equal bytes. Raises: DiskSpaceError."""
    centroids = np.ascontiguousarray(content.centroids, "<f4")
    about = {"format": FORMAT, "version": VERSION, **content._asdict(), "tasks": list(content.tasks)}
    del about["centroids"]
    atomic_write(path, seal(safetensors.numpy.save({"centroids": centroids}), {"router": json.dumps(about)}))


def read_router(path: Path) -> RouterContent:
    """Read what :func:`write_router` wrote. Raises: StateFileError, naming what is wrong."""
    try:
        data = read_sealed(path)
        about: dict[str, Any] = parse_json(metadata_of(data)["router"])
        centroids = safetensors.numpy.load(data)["centroids"]
        if (found := about["format"], about["version"]) != (FORMAT, VERSION):
            _refuse(path, f"format {found!r}, version {about['version']!r}")
        tasks = tuple(about["tasks"])
        if centroids.ndim != 2 or centroids.dtype != np.float32 or len(tasks) != len(centroids):
            _refuse(path, f"centroids {centroids.dtype} {centroids.shape} for {len(tasks)} tasks")
        return RouterContent(
            tasks, centroids, float(about["threshold"]), str(about["embedding"]), float(about["reject"])
        )
    except OSError as error:
        _refuse(path, error.strerror or str(error))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        _refuse(path, f"{type(error).__name__}: {error}")


def _refuse(path: Path, got: str) -> NoReturn:
    raise StateFileError(
        str(path),
        got=got,
        allowed="a router's file, as `crma route` writes it",
        remedy="fit the router again with crma route",
    )
