"""The base model of a run: a Hugging Face folder on this machine. Nothing is downloaded. Source: ours."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.finetune.models.marker import MARKER, is_random
from backends.finetune.models.zoo import ZOO, find_model
from reference.errors import MissingPackageError, ModelError

ALLOWED = (
    '"smollm2", or a folder with config.json, *.safetensors and a tokenizer, as save_pretrained writes it; or one of '
    + ", ".join(ZOO)
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def resolve_model(name_or_path: str) -> Path:
    """Folder of a base model: a local one as it is; SmolLM2-135M-Instruct for the name "smollm2"; one of the zoo, by
    its short name or Hugging Face id, where it lies in ``$CRMA_MODELS/NAME`` or whole in the cache of Hugging Face.

    Raises:
        ModelError: unknown name, or a folder that is not a whole model.
        MissingPackageError: "smollm2" without the packages that hold and unpack it.
        DiskSpaceError: no room in the cache folder.

    Clauses: ERR-1, ERR-2. Source: ours.
    """
    if name_or_path == "smollm2":
        from backends.finetune.smollm2 import cached_smollm2

        return cached_smollm2()
    folder = Path(os.path.expanduser(name_or_path))
    if not folder.exists() and (model := find_model(name_or_path)):
        from backends.finetune.models.local import local_folder

        return local_folder(model, check_model_folder)
    if not name_or_path or not folder.exists():
        is_hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name_or_path) is not None
        raise ModelError(
            "model",
            got=repr(name_or_path) + (", no folder here; it may be a Hugging Face id" if is_hub_id else ""),
            allowed=ALLOWED,
            remedy=f"hf download {name_or_path} --local-dir FOLDER, then name that folder; nothing is downloaded here"
            if is_hub_id
            else "check the spelling; a relative path starts at the folder that the command runs in",
        )
    check_model_folder(folder)
    return folder


@contextmanager
def load_errors(folder: Path) -> Iterator[None]:
    """Turn what libraries raise for a folder that they cannot load into ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            str(folder),
            got=f"{type(error).__name__}: {error}",
            allowed="a causal LM as Hugging Face save_pretrained writes it, with its tokenizer",
            remedy="save or download the model again",
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises: ModelError."""
    from transformers import AutoTokenizer

    with load_errors(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of the configuration, of what random weights are drawn from, and of the size, beginning and end of each
    file of weights.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if is_random(folder):
        digest.update((folder / MARKER).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(2**20))
            weights.seek(max(0, size - 2**20))
            digest.update(weights.read())
    return digest.hexdigest()


def check_model_folder(folder: Path) -> None:
    """Raise ModelError unless ``folder`` holds a configuration, whole weights and a tokenizer.

    One that is marked as having random weights need not hold any: they are drawn when the model is built.
    """
    if not folder.is_dir():
        raise _incomplete(folder, "a file")
    config = read_json(folder, "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise _incomplete(folder, "a config.json without model_type")
    if is_random(folder):
        _check_marker(folder)
    for name in _weight_files(folder):
        if not is_random(folder) or (folder / name).exists():
            _check_weights(folder, name)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _incomplete(folder, f"a folder without a tokenizer ({', '.join(_TOKENIZERS)})")


def _check_marker(folder: Path) -> None:
    marker = read_json(folder, MARKER)
    if not isinstance(marker, dict) or type(marker.get("seed")) is not int:
        raise _incomplete(folder, f"a {MARKER} without a seed")


def _weight_files(folder: Path) -> list[str]:
    index = "model.safetensors.index.json"
    if not (folder / index).is_file():
        return ["model.safetensors"]
    try:
        return sorted({str(name) for name in read_json(folder, index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise _incomplete(folder, f"a {index} without weight_map") from error


def _check_weights(folder: Path, name: str) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra(error) from error
    if not (folder / name).is_file():
        raise _incomplete(folder, f"a folder without the weights {name}")
    try:
        with safe_open(folder / name, framework="numpy") as file:  # reads the header, which tells the file's length
            if not list(file.keys()):
                raise _incomplete(folder, f"{name} without a single tensor")
    except (SafetensorError, OSError) as error:
        raise _incomplete(folder, f"{name}, which is damaged or cut short ({error})") from error


def read_json(folder: Path, name: str) -> Any:
    """The content of a JSON file of a model folder. Raises: ModelError."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _incomplete(folder, f"a folder without {name}") from None
    except (ValueError, OSError) as error:
        raise _incomplete(folder, f"a {name} that cannot be read ({error})") from error


def _incomplete(folder: Path, got: str) -> ModelError:
    return ModelError(
        f"model folder {folder}",
        got=got,
        allowed=ALLOWED,
        remedy="copy or download the whole model again; weights of another format go through save_pretrained first",
    )


def missing_extra(error: ImportError) -> MissingPackageError:
    """What to say where one of the packages of the extra ``finetune`` is not installed."""
    return MissingPackageError(
        "base model",
        got=f"no package named {error.name}" if error.name else str(error).split("\n")[0],
        allowed="an installation with the extra 'finetune'",
        remedy="pip install 'crma[finetune]'",
    )
