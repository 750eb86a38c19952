"""Faults of writing state files. Source: ours."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.state_file import KEYS
from conformance.selftest.port import Array, NumpyPort
from reference import SPEC_VERSION


class Writer(NumpyPort):
    """Writes a state file without a library; right as it stands. ``tensors`` and ``metadata`` may be changed."""

    physical_order = KEYS

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        layers, n, r, d = bases.shape
        config = {"hidden_size": d, "streams": n, "rank": r, "iterations": iterations, "layers": layers}
        arrays = zip(KEYS, (mix_logits, gate_logits, bases), strict=True)
        tensors = self.tensors({key: np.asarray(array, "<f4") for key, array in arrays})
        header: dict[str, Any] = {
            "__metadata__": self.metadata({"format": "crma", "spec_version": SPEC_VERSION}, config)
        }
        begin = 0
        for key, tensor in tensors.items():
            dtype = {4: "F32", 8: "F64"}[tensor.itemsize]
            offsets = [begin, begin + tensor.nbytes]
            header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            begin += tensor.nbytes
        text = json.dumps({key: value for key, value in header.items() if value}).encode()
        text += b" " * (-len(text) % 8)
        body = b"".join(tensors[key].tobytes() for key in self.physical_order)
        return struct.pack("<Q", len(text)) + text + body

    def tensors(self, tensors: dict[str, Array]) -> dict[str, Array]:
        return tensors

    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return metadata | {"config": json.dumps(config)}


class WritesInAnotherOrder(Writer):
    """The header gives offsets in one order, and the arrays lie in another."""

    physical_order = ("bases", "gate_logits", "mix_logits")


class WritesMemoryInOrder(Writer):
    """What lies in memory is written as it lies there, whatever its strides say."""

    def tensors(self, tensors: dict[str, Array]) -> dict[str, Array]:
        return {key: tensor.ravel(order="K").reshape(tensor.shape) for key, tensor in tensors.items()}


class WritesFloat64(Writer):
    def tensors(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return {key: array.astype(np.float64) for key, array in arrays.items()}


class WritesLayersReversed(Writer):
    def tensors(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return {key: array[::-1] for key, array in arrays.items()}


class WritesOtherKeys(Writer):
    """The name of the interface's argument, in the singular."""

    physical_order = ("mix_logits", "gate_logit", "bases")

    def tensors(self, tensors: dict[str, Array]) -> dict[str, Array]:
        return dict(zip(self.physical_order, tensors.values(), strict=True))


class WritesNoMetadata(Writer):
    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return None


class WritesDefaultIterations(Writer):
    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return super().metadata(metadata, config | {"iterations": 20})


class WritesOneLayerLess(Writer):
    """The count in config starts at 0."""

    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return super().metadata(metadata, config | {"layers": config["layers"] - 1})


_WRITES = ("test_writes_a_state_file_that_others_can_read",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, (PROJECTION, ADAPTER, STATE_FILE))
    for name, factory, caught_by in (
        ("writes_float64", WritesFloat64, _WRITES),
        ("writes_in_another_order", WritesInAnotherOrder, _WRITES),
        ("writes_memory_in_order", WritesMemoryInOrder, ("test_writes_strided_arrays_by_index",)),
        ("writes_layers_reversed", WritesLayersReversed, _WRITES),
        ("writes_other_keys", WritesOtherKeys, _WRITES),
        ("writes_no_metadata", WritesNoMetadata, _WRITES),
        ("writes_default_iterations", WritesDefaultIterations, _WRITES),
        ("writes_one_layer_less", WritesOneLayerLess, _WRITES),
    )
)
