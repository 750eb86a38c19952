"""The adapter state file as bytes and NumPy arrays, the same for every backend.

Clauses: STATE-1, STATE-2, STATE-4 to STATE-6.
"""

import dataclasses
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from backends.files import read_bytes
from backends.sealed import with_metadata
from reference import SPEC_VERSION, AdapterConfig
from reference.errors import ConfigError, StateFileError

Array = NDArray[Any]
#: bytes; the adapter of the largest models has a hundredth of it
LIMIT = 2**34
KEYS = ("mix_logits", "gate_logits", "bases")
VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")  # STATE-7


class StateFile(NamedTuple):
    """Content of a state file: float32 arrays (L, n, n), (L,) and (L, n, r, d), their sizes, and the base model in
    words and as the checksum of its configuration ("" where the file does not say).
    """

    mix_logits: Array
    gate_logits: Array
    bases: Array
    config: AdapterConfig
    base_model: str
    base_model_sha256: str


def encode_state(
    mix_logits: Array,
    gate_logits: Array,
    bases: Array,
    config: AdapterConfig,
    base_model: str = "",
    base_model_sha256: str = "",
) -> bytes:
    """The bytes of a state file; equal states give equal bytes.

    Raises: StateFileError for what no reader would take. Clauses: STATE-1, STATE-2, STATE-4.
    """
    sizes = dataclasses.asdict(config) | {"layers": len(bases)}
    metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(sizes)}
    optional = {"base_model": base_model, "base_model_sha256": base_model_sha256}
    metadata |= {key: value for key, value in optional.items() if value}
    with np.errstate(over="ignore"):  # a float64 number beyond float32 becomes an infinity, which is refused
        arrays = {
            key: np.asarray(array, np.float32, order="C")
            for key, array in zip(KEYS, (mix_logits, gate_logits, bases), strict=True)
        }
    if wrong := _misfit(arrays, config, max(len(bases), 1)):
        raise StateFileError(
            "state to be written",
            got=wrong,
            allowed=f"finite float32 arrays {', '.join(KEYS)} of one layer or more, in the sizes of {config}",
            remedy="go back to the last state that is whole; a state with NaN comes from a training that diverged",
        )
    metadata["content_sha256"] = _checksum(metadata["config"], arrays)
    return with_metadata(safetensors.numpy.save(arrays, metadata), metadata)


def read_state(path: Path | str) -> bytes:
    """The bytes of a file. Raises: StateFileError if it cannot be read."""
    try:
        return read_bytes(path, limit=LIMIT)
    except OSError as error:
        raise StateFileError(
            str(path), got=error.strerror, allowed="a CRMA state file", remedy="check the path and its permissions"
        ) from error


def decode_state(data: bytes, name: str = "state file") -> StateFile:
    """Read the bytes of a state file; ``name`` says in an error what was read.

    Raises: StateFileError, naming what is wrong. Clauses: STATE-1, STATE-2, STATE-4, STATE-5.
    """
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        metadata = header.get("__metadata__") or {}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _refusal(name, f"{type(error).__name__}: {error}") from error
    if metadata.get("format") != "crma":
        raise _refusal(name, f"format {metadata.get('format')!r}")
    version = metadata.get("spec_version", "none")
    parts = VERSION.fullmatch(version)
    if not parts or int(parts[1]) > int(SPEC_VERSION.partition(".")[0]):
        raise _refusal(name, f"spec_version {version[:40]}, while this program reads {SPEC_VERSION}")
    try:
        sizes = json.loads(metadata.get("config", ""))
        layers = sizes.pop("layers")
        if missing := {field.name for field in dataclasses.fields(AdapterConfig)} - sizes.keys():
            raise KeyError(", ".join(sorted(missing)))
        config = AdapterConfig(**sizes)
        if type(layers) is not int or layers < 1:
            raise ConfigError("layers", got=repr(layers), allowed="an integer >= 1", remedy="count the layers")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _refusal(name, f"config {str(metadata.get('config'))[:200]!r} ({error})") from error
    if sorted(arrays) != sorted(KEYS):
        raise _refusal(name, f"tensors {sorted(arrays)}")
    if wrong := _misfit(arrays, config, layers):
        raise _refusal(name, wrong)
    found = metadata.get("content_sha256")  # files of version 0.2 have none
    if found is not None and found != (checksum := _checksum(metadata["config"], arrays)):
        raise _refusal(name, f"content_sha256 {found[:64]}, while the content has {checksum} (damaged bits?)")
    mix_logits, gate_logits, bases = (arrays[key] for key in KEYS)
    names = (metadata.get(key, "") for key in ("base_model", "base_model_sha256"))
    return StateFile(mix_logits, gate_logits, bases, config, *names)


def _misfit(arrays: dict[str, Array], config: AdapterConfig, layers: int) -> str:
    """What is wrong with arrays that are to have these sizes; empty if nothing is. Clause: STATE-4."""
    n = config.streams
    expected = {
        "mix_logits": (layers, n, n),
        "gate_logits": (layers,),
        "bases": (layers, n, config.rank, config.hidden_size),
    }
    for key, shape in expected.items():
        if arrays[key].shape != shape or arrays[key].dtype != np.float32:
            return f"{key} {arrays[key].dtype} {arrays[key].shape}, expected float32 {shape}"
        if not np.isfinite(arrays[key]).all():
            return f"{key} with NaN or infinity"
    return ""


def _checksum(config: str, arrays: dict[str, Array]) -> str:
    """SHA-256 in hex of the metadata string ``config``, then the bytes of the arrays in the order of KEYS."""
    digest = hashlib.sha256(config.encode())
    for key in KEYS:
        digest.update(np.ascontiguousarray(arrays[key], "<f4").tobytes())
    return digest.hexdigest()


def _refusal(name: str, got: str) -> StateFileError:
    return StateFileError(
        name,
        got=got,
        allowed=f"a CRMA state file: safetensors with {', '.join(KEYS)} in float32 and metadata of format 'crma'",
        remedy="take an earlier checkpoint, or save the state again with save_state",
    )
