"""The safetensors files of a model folder: which there are, whether each is whole, what each holds. Source: ours."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.jax.decoder.fields import read_fields
from reference.errors import MissingPackageError, ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
COPY_AGAIN = "copy or download the file again"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class Entry(NamedTuple):
    """A tensor as the header of its file describes it; ``dtype`` is a name of NumPy, or what the file says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Name -> where each tensor of the model is. Reads headers only.

    Raises: ModelError for a folder without safetensors, and for a shard that is missing, cut short or damaged.
    """
    if not folder.is_dir():
        raise ModelError(str(folder), got="no such folder", allowed="a model folder", remedy="check the path")
    if (folder / SINGLE).is_file():  # as in transformers, it goes before an index
        return _read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    weight_map = read_fields(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        got = f"weight_map {str(weight_map)[:80]}"
        raise ModelError(str(folder / INDEX), got=got, allowed="a map from tensors to files", remedy=COPY_AGAIN)
    shards: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            got = f"{tensor} in {name!r}"
            raise ModelError(str(folder / INDEX), got=got, allowed="names of files in the folder", remedy=COPY_AGAIN)
        shards.setdefault(name, []).append(tensor)
    found: dict[str, Entry] = {}
    for name, tensors in sorted(shards.items()):
        path = folder / name
        if not path.is_file():
            got = f"no such file; {INDEX} says it holds {len(tensors)} tensors, {tensors[0]} among them"
            raise ModelError(str(path), got=got, allowed=f"each of the {len(shards)} shards", remedy=COPY_AGAIN)
        header = _read_header(path)
        if absent := [tensor for tensor in tensors if tensor not in header]:
            got = f"a file without {absent[0]}"
            raise ModelError(str(path), got=got, allowed=f"the tensors that {INDEX} names", remedy=COPY_AGAIN)
        found |= {tensor: header[tensor] for tensor in tensors}
    return found


@contextmanager
def open_shards(entries: dict[str, Entry]) -> Iterator[Any]:
    """A function name -> NumPy array that reads one tensor at a time.

    Raises: MissingPackageError without safetensors; ModelError for a file that turns out damaged.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingPackageError(
            "model weights", got="no package named safetensors", allowed="safetensors", remedy="pip install 'crma[jax]'"
        ) from error
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def read(name: str) -> np.ndarray:
            path = entries[name].file
            try:
                if path not in files:
                    files[path] = stack.enter_context(safe_open(path, framework="numpy"))
                array: np.ndarray = files[path].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path}: {name}", got=f"{error}", allowed="a whole safetensors file", remedy=COPY_AGAIN
                ) from error
            return array

        yield read


def _read_header(path: Path) -> dict[str, Entry]:
    """The header alone; the file's length must be what the header says."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        entries = {
            name: Entry(path, tuple(tensor["shape"]), DTYPES.get(tensor["dtype"], tensor["dtype"]))
            for name, tensor in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        got, allowed = f"{type(error).__name__}: {error}", "a safetensors file"
        raise ModelError(str(path), got=got, allowed=allowed, remedy=COPY_AGAIN) from error
    if size != expected:
        raise ModelError(
            str(path),
            got=f"{size} bytes" + (", cut short" if size < expected else ""),
            allowed=f"{expected} bytes, as its header says",
            remedy=COPY_AGAIN,
        )
    return entries


def _no_weights(folder: Path) -> ModelError:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        return ModelError(
            str(folder / pickled[0]),
            got="weights as pickle, which can run any code when it is read",
            allowed=f"{SINGLE}, or shards with {INDEX}",
            remedy="if you trust the file, convert it once: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder)",
        )
    return ModelError(
        str(folder),
        got=f"neither {SINGLE} nor {INDEX}",
        allowed="a folder with weights, as save_pretrained writes it",
        remedy="copy or download the whole model again",
    )
