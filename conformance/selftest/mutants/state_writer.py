"""Faults of writing state files."""

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.state_file import KEYS
from conformance.selftest.port import Array, NumpyPort
from reference import SPEC_VERSION


class Writer(NumpyPort):
    """Writes a state file without a library; right as it stands.

    ``tensors`` and ``config`` are changed before they are written, and ``more`` is added to the metadata.
    """

    physical_order = KEYS

    def __init__(
        self,
        tensors: Callable[[dict[str, Array]], dict[str, Array]] = dict,
        config: Callable[[dict[str, int]], dict[str, int]] = dict,
        **more: str,
    ) -> None:
        super().__init__()
        self.tensors, self.config, self.more = tensors, config, more

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        self.check(mix_logits, gate_logits, bases, iterations)
        layers, n, r, d = bases.shape
        config = {"hidden_size": d, "streams": n, "rank": r, "iterations": iterations, "layers": layers}
        arrays = zip(KEYS, (mix_logits, gate_logits, bases), strict=True)
        tensors = self.tensors({key: np.asarray(array, "<f4") for key, array in arrays})
        metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(self.config(config))}
        header: dict[str, Any] = {"__metadata__": metadata | self.more}
        begin = 0
        for key, tensor in tensors.items():
            dtype = {4: "F32", 8: "F64"}[tensor.itemsize]
            offsets = [begin, begin + tensor.nbytes]
            header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            begin += tensor.nbytes
        text = json.dumps(self.header(header)).encode()
        text += b" " * (-len(text) % 8)
        body = b"".join(tensors[key].tobytes() for key in self.physical_order)
        return struct.pack("<Q", len(text)) + text + body

    def check(self, *state: Any) -> None:
        super().save_state(*state)  # refuses what no file may hold

    def header(self, header: dict[str, Any]) -> dict[str, Any]:
        return header


class WritesInAnotherOrder(Writer):
    """The header gives offsets in one order, and the arrays lie in another."""

    physical_order = ("bases", "gate_logits", "mix_logits")


class WritesOtherKeys(Writer):
    """The name of the interface's argument, in the singular."""

    def header(self, header: dict[str, Any]) -> dict[str, Any]:
        return {key.replace("gate_logits", "gate_logit"): entry for key, entry in header.items()}


class WritesNoMetadata(Writer):
    def header(self, header: dict[str, Any]) -> dict[str, Any]:
        return {key: header[key] for key in KEYS}


class WritesAnything(Writer):
    def check(self, *state: Any) -> None:
        return None


def each(change: Callable[[Array], Array]) -> Callable[..., Writer]:
    """Every tensor is changed before it is written."""
    return partial(Writer, lambda tensors: {key: change(tensor) for key, tensor in tensors.items()})


def with_other(**change: Callable[[int], int]) -> Callable[..., Writer]:
    """A number of config is changed before it is written."""
    return partial(Writer, config=lambda config: config | {key: of(config[key]) for key, of in change.items()})


def in_order_of_memory(tensor: Array) -> Array:
    """What lies in memory is written as it lies there, whatever its strides say."""
    return tensor.ravel(order="K").reshape(tensor.shape)


def layers_as_text(tensor: Array) -> Array:
    """In the order of their numbers as texts: 0, 1, 10, 11, 2."""
    return tensor[sorted(range(len(tensor)), key=str)]


def without_subnormals(tensor: Array) -> Array:
    return np.where(np.abs(tensor) < SMALLEST, tensor * 0, tensor)


SMALLEST = np.finfo(np.float32).tiny
_EVERY = ("test_writes_every_size_bit_for_bit",)
_WRITES = ("test_writes_a_state_file_that_others_can_read",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, (PROJECTION, ADAPTER, STATE_FILE))
    for name, factory, caught_by in (
        ("writes_float64", each(lambda tensor: tensor.astype(np.float64)), _WRITES),
        ("writes_in_another_order", WritesInAnotherOrder, _WRITES),
        ("writes_memory_in_order", each(in_order_of_memory), ("test_writes_strided_arrays_by_index",)),
        ("writes_layers_reversed", each(lambda tensor: tensor[::-1]), _WRITES),
        ("writes_other_keys", WritesOtherKeys, _WRITES),
        ("writes_no_metadata", WritesNoMetadata, _WRITES),
        ("writes_default_iterations", with_other(iterations=lambda k: 20), _WRITES),
        ("writes_one_layer_less", with_other(layers=lambda count: count - 1), _WRITES),
        ("writes_anything", WritesAnything, ("test_what_no_file_may_hold_is_not_written",)),
        ("writes_layers_as_text", each(layers_as_text), _EVERY),
        ("writes_k_in_a_byte", with_other(iterations=lambda k: min(k, 255)), _EVERY),
        ("writes_zeros_without_sign", each(lambda tensor: tensor + np.float32(0)), _EVERY),
        ("writes_no_subnormal_numbers", each(without_subnormals), _EVERY),
        ("writes_what_fits_float16", each(lambda tensor: np.clip(tensor, -1e4, 1e4)), _EVERY),
        ("writes_another_version", partial(Writer, spec_version="0.999"), _WRITES),
        ("writes_a_date", partial(Writer, created="2026-11-28"), _WRITES),
        ("writes_a_model_that_nobody_gave", partial(Writer, base_model="llama, 30 layers"), _WRITES),
    )
)
