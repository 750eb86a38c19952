"""The files of a model folder: which safetensors there are, whether each is whole, what each holds."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.files import TEXT_LIMIT, opened, parse_json, printable, read_json
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

    Raises: ModelError for a folder without safetensors, for a shard that is missing, cut short or damaged, and for a
    tensor that is in two of them.
    """
    if not folder.is_dir():
        raise ModelError(str(folder), got="no such folder", allowed="a model folder", remedy="check the path")
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return _read_header(folder / SINGLE)
        raise _no_weights(folder)
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        got = f"an index without weight_map (weight_map {printable(weight_map)[:80]})"
        raise ModelError(str(folder / INDEX), got=got, allowed="a map from tensors to files", remedy=COPY_AGAIN)
    if (folder / SINGLE).exists():
        got = f"{SINGLE} beside {INDEX}, two answers to what the weights are"
        raise ModelError(str(folder), got=got, allowed="one of the two", remedy="remove the one that is not meant")
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
        if twice := sorted(header.keys() & found.keys()):
            got = f"{twice[0]}, which {found[twice[0]].file.name} holds, too"
            raise ModelError(str(path), got=got, allowed="each tensor in one file", remedy=COPY_AGAIN)
        found |= header  # also what the index does not name: a loader would read it
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises: ModelError for a file that is missing or holds another."""
    allowed = "a file with a JSON object, as save_pretrained writes it"
    remedy = "copy or download the whole model again"
    try:
        entries = read_json(path)
    except FileNotFoundError:
        raise ModelError(str(path), got="no such file", allowed=allowed, remedy=remedy) from None
    except (ValueError, OSError) as error:
        got = f"a file that cannot be read ({type(error).__name__}: {printable(error)[:200]})"
        raise ModelError(str(path), got=got, allowed=allowed, remedy=remedy) from error
    if not isinstance(entries, dict):
        raise ModelError(str(path), got=f"a JSON {type(entries).__name__}", allowed=allowed, remedy=remedy)
    return entries


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
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, TEXT_LIMIT):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, tensor) for name, tensor in header.items()}
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        got = f"a file that is damaged or cut short ({type(error).__name__}: {printable(error)[:200]})"
        raise ModelError(str(path), got=got, allowed="a safetensors file", remedy=COPY_AGAIN) from error
    if not entries:
        raise ModelError(str(path), got="no tensor at all", allowed="a file with weights", remedy=COPY_AGAIN)
    if size != expected:
        raise ModelError(
            str(path),
            got=f"{size} bytes" + (", cut short" if size < expected else ""),
            allowed=f"{expected} bytes, as its header says",
            remedy=f"{COPY_AGAIN}, which is damaged or cut short",
        )
    return entries


def _entry(path: Path, name: str, tensor: dict[str, Any]) -> Entry:
    shape = tensor["shape"]
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{name} of shape {shape}")
    return Entry(path, tuple(shape), DTYPES.get(tensor["dtype"], str(tensor["dtype"])))


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
        got=f"a folder without the weights {SINGLE}: neither {SINGLE} nor {INDEX}",
        allowed="a folder with weights, as save_pretrained writes it",
        remedy="copy or download the whole model again",
    )
