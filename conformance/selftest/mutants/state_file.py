"""Faults of reading state files."""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from backends.interface import State
from conformance.selftest.mutants.around import LOAD, Given, Returns, argument, each_array
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort
from reference import SPEC_VERSION
from reference.errors import StateFileError

KEYS = ("mix_logits", "gate_logits", "bases")
SIZES = ("hidden_size", "streams", "rank", "iterations", "layers")
VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")


class OwnReader(NumpyPort):
    """Reads a state file without a library; right as it stands, except for the check named ``left_out``."""

    def __init__(self, left_out: str = "") -> None:
        super().__init__()
        self.left_out = left_out

    def load_state(self, data: bytes) -> State:
        try:
            return self.decoded(data)
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise _refusal(f"{type(error).__name__}: {error}") from error

    def decoded(self, data: bytes) -> State:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        self.demand("whole file", start <= len(data))
        header = json.loads(data[8:start].decode())
        metadata = header.pop("__metadata__", {})
        config = self.config(metadata)
        self.demand("same arrays", sorted(header) == sorted(KEYS))
        self.check_offsets(header, len(data) - start)
        tensors = self.tensors(header, data[start:])
        n, r, d, layers = (config[key] for key in ("streams", "rank", "hidden_size", "layers"))
        shapes = {"mix_logits": (layers, n, n), "gate_logits": (layers,), "bases": (layers, n, r, d)}
        for key, shape in shapes.items():
            self.demand("shapes of config", tensors[key].shape == shape)
            self.demand(f"finite {key}", bool(np.isfinite(tensors[key]).all()))
        found = metadata.get("content_sha256")
        self.demand("no checksum at all", found is None or self.left_out != "with a checksum")
        content = metadata["config"].encode() + b"".join(tensors[key].tobytes() for key in KEYS)
        self.demand("checksum", found is None or found == hashlib.sha256(content).hexdigest())
        return State(tensors["mix_logits"], tensors["gate_logits"], tensors["bases"], config["iterations"])

    def config(self, metadata: dict[str, str]) -> dict[str, Any]:
        self.demand("text", all(isinstance(value, str) for value in metadata.values()))
        self.demand("format", metadata.get("format") == "crma")
        version = metadata.get("spec_version", "0.1" if self.left_out == "a version" else "none")
        self.demand("form of the version", bool(VERSION.fullmatch(version)))
        newest = int(SPEC_VERSION.partition(".")[0])
        self.demand("version", version.partition(".")[0] <= str(newest))
        config: dict[str, Any] = json.loads(metadata.get("config", ""))
        self.demand("known keys", sorted(config) == sorted(SIZES))
        for key in SIZES:
            self.demand(f"integer {key}", type(config[key]) is int and config[key] >= 1)
        self.demand("n r <= d", config["streams"] * config["rank"] <= config["hidden_size"])
        return config

    def check_offsets(self, header: dict[str, Any], length: int) -> None:
        """The arrays follow each other without gap or overlap, up to the end of the file."""
        spans = sorted(entry["data_offsets"] for entry in header.values())
        self.demand("integer offsets", all(type(offset) is int for span in spans for offset in span))
        self.demand("nothing behind", spans[-1][1] >= length)
        self.demand("whole file", spans[-1][1] <= length)
        follow = all(left[1] == right[0] for left, right in pairwise(spans))
        self.demand("nothing before", spans[0][0] == 0)
        self.demand("no overlap", follow)

    def tensors(self, header: dict[str, Any], body: bytes) -> dict[str, Array]:
        return {key: self.array(header[key], body, *header[key]["data_offsets"]) for key in KEYS}

    def array(self, entry: dict[str, Any], body: bytes, begin: int, end: int) -> Array:
        self.demand("float32", entry["dtype"] == "F32")
        kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "U32": "<u4"}[entry["dtype"]]
        size = int(np.prod(entry["shape"])) * np.dtype(kind).itemsize
        self.demand("offsets of the shape", end - begin == size)
        raw = body[begin : begin + size].ljust(size, b"\0")
        return np.frombuffer(raw, kind).reshape(entry["shape"]).astype(np.float32)

    def demand(self, check: str, fulfilled: bool) -> None:
        if check != self.left_out and not fulfilled:
            raise _refusal(f"a file that fails the check {check!r}")


class ReadsInOrder(OwnReader):
    """``data_offsets`` says how long an array is, and not where: they are taken one after another, as ``order`` says.

    That of the header, or that in which the writer of the project happens to lay them out.
    """

    def __init__(self, order: Callable[[Iterable[str]], Iterable[str]]) -> None:
        super().__init__()
        self.order = order

    def tensors(self, header: dict[str, Any], body: bytes) -> dict[str, Array]:
        found, begin = {}, 0
        for key in self.order(header):
            end = begin + header[key]["data_offsets"][1] - header[key]["data_offsets"][0]
            found[key] = self.array(header[key], body, begin, end)
            begin = end
        return found


class ChecksumInPhysicalOrder(OwnReader):
    """The checksum is that of the bytes as they lie in the file."""

    def decoded(self, data: bytes) -> State:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        metadata = json.loads(data[8:start].decode()).get("__metadata__", {})
        found, content = metadata.get("content_sha256"), metadata["config"].encode() + data[start:]
        self.demand("physical order", found is None or found == hashlib.sha256(content).hexdigest())
        return super().decoded(data)


class MinorVersionsComparedAsText(OwnReader):
    """0.10 is taken for older than 0.2, and refused as too old."""

    def config(self, metadata: dict[str, str]) -> dict[str, Any]:
        self.demand(
            "as text", metadata.get("spec_version", "") >= "0.2" or metadata.get("spec_version") in ("0.0", "0.1")
        )
        return super().config(metadata)


class ConfigWithSpacesRefused(OwnReader):
    """Config is compared with how this project's writer would write it."""

    def config(self, metadata: dict[str, str]) -> dict[str, Any]:
        config = super().config(metadata)
        self.demand("spacing", metadata["config"] == json.dumps(config))
        return config


def with_each(change: Callable[[Array], Array]) -> Callable[..., State]:
    """Every array is changed after it was read."""
    return lambda state, _: each_array(change, state)


def transposed(state: State, _: bytes) -> State:
    return state._replace(mix_logits=np.swapaxes(state.mix_logits, -1, -2))


def in_float16(array: Array) -> Array:
    """Kept in the dtype of the model."""
    return array.astype(np.float16).astype(np.float32)


def length_of_32_bits(data: bytes) -> bytes:
    """The upper half of the length of the header is not read."""
    return data[:4] + bytes(4) + data[8:]


def _refusal(got: str) -> StateFileError:
    return StateFileError("mutant", got=got, allowed="a CRMA state file", remedy="save the state again")


_READS = ("test_reads_what_a_state_file_holds",)
_HOLDS = (*_READS, "test_golden_state_file")
_SIZE = ("test_every_size_is_read",)
_ANYWHERE = ("test_arrays_are_found_by_name_wherever_they_lie",)
_DAMAGED = ("test_golden_state_file",)
_FAMILY = ("test_files_that_are_wrong_in_one_thing_are_refused",)
_LEGAL = ("test_every_legal_form_is_read",)
_NUMBERS = (PROJECTION, ADAPTER)
#: what a reader may forget to check -> its mutant's name
_UNCHECKED = {
    "whole file": "cut_off_file_accepted",
    "nothing behind": "bytes_behind_the_arrays_accepted",
    "no overlap": "overlapping_arrays_accepted",
    "nothing before": "bytes_before_the_arrays_accepted",
    "text": "metadata_of_numbers_accepted",
    "offsets of the shape": "offsets_of_another_shape_accepted",
    "format": "other_format_accepted",
    "version": "newer_version_accepted",
    **{f"integer {size}": f"{size}_of_any_form_accepted" for size in SIZES},
    "known keys": "unknown_keys_of_config_accepted",
    "n r <= d": "more_directions_than_the_hidden_size_accepted",
    "a version": "no_version_accepted",
    "form of the version": "any_version_accepted",
    "checksum": "wrong_checksum_accepted",
    "same arrays": "surplus_array_accepted",
    "shapes of config": "shapes_unlike_config_accepted",
    "float32": "other_dtype_accepted",
    **{f"finite {key}": f"nan_in_{key}_accepted" for key in KEYS},
}
#: of these the older table has no file
_IN_FAMILIES = (
    "nothing before",
    "integer",
    "known",
    "n r",
    "a version",
    "form",
    "checksum",
    "finite mix",
    "finite gate",
)
_LENIENT = tuple(
    Mutant(name, partial(OwnReader, check), _FAMILY if check.startswith(_IN_FAMILIES) else _DAMAGED, (STATE_FILE,))
    for check, name in _UNCHECKED.items()
)
MUTANTS = _LENIENT + tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("every_checksum_refused", partial(OwnReader, "with a checksum"), _LEGAL, _READS),
        ("checksum_in_physical_order", ChecksumInPhysicalOrder, _LEGAL, _READS),
        ("minor_versions_compared_as_text", MinorVersionsComparedAsText, _LEGAL, _READS),
        ("header_length_of_32_bits", partial(Given, LOAD, argument(0, length_of_32_bits)), _FAMILY, _READS),
        ("config_with_spaces_refused", ConfigWithSpacesRefused, _LEGAL, _READS),
        (
            "zeros_lose_their_sign",
            partial(Returns, LOAD, with_each(lambda array: array + np.float32(0))),
            _SIZE,
            _READS,
        ),
        ("reads_in_the_usual_order", partial(ReadsInOrder, sorted), _ANYWHERE, _NUMBERS),
        ("reads_in_header_order", partial(ReadsInOrder, list), _ANYWHERE, _NUMBERS),
        ("layers_reversed", partial(Returns, LOAD, with_each(lambda array: array[::-1])), _HOLDS, _NUMBERS),
        ("logits_transposed", partial(Returns, LOAD, transposed), _HOLDS, _NUMBERS),
        (
            "default_iterations",
            partial(Returns, LOAD, lambda state, _: state._replace(iterations=20)),
            _HOLDS,
            _NUMBERS,
        ),
        ("rounds_what_it_reads", partial(Returns, LOAD, with_each(in_float16)), _HOLDS, _NUMBERS),
    )
)
