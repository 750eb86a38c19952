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
    """Writes a state file without a library; right as it stands. ``tensors`` and ``metadata`` may be changed."""

    physical_order = KEYS

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        self.check(mix_logits, gate_logits, bases, iterations)
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

    def check(self, *state: Any) -> None:
        super().save_state(*state)  # refuses what no file may hold

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


class WritesAnything(Writer):
    def check(self, *state: Any) -> None:
        return None


class WritesOtherNumbers(Writer):
    def __init__(self, change: Callable[[Array], Array]) -> None:
        super().__init__()
        self.change = change

    def tensors(self, tensors: dict[str, Array]) -> dict[str, Array]:
        return {key: np.asarray(self.change(tensor), np.float32) for key, tensor in tensors.items()}


class WritesLayersAsText(Writer):
    """In the order of their numbers as texts: 0, 1, 10, 11, 2."""

    def tensors(self, tensors: dict[str, Array]) -> dict[str, Array]:
        order = sorted(range(len(tensors["gate_logits"])), key=str)
        return {key: tensor[order] for key, tensor in tensors.items()}


class WritesKInAByte(Writer):
    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return super().metadata(metadata, config | {"iterations": min(config["iterations"], 255)})


class WritesMore(Writer):
    """Metadata that it was not given, or in place of its own."""

    def __init__(self, **more: str) -> None:
        super().__init__()
        self.more = more

    def metadata(self, metadata: dict[str, str], config: dict[str, int]) -> dict[str, str] | None:
        return super().metadata(metadata | self.more, config)


SMALLEST = np.finfo(np.float32).tiny
_EVERY = ("test_writes_every_size_bit_for_bit",)
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
        ("writes_anything", WritesAnything, ("test_what_no_file_may_hold_is_not_written",)),
        ("writes_layers_as_text", WritesLayersAsText, _EVERY),
        ("writes_k_in_a_byte", WritesKInAByte, _EVERY),
        ("writes_zeros_without_sign", partial(WritesOtherNumbers, lambda array: array + np.float32(0)), _EVERY),
        (
            "writes_no_subnormal_numbers",
            partial(WritesOtherNumbers, lambda array: np.where(np.abs(array) < SMALLEST, array * 0, array)),
            _EVERY,
        ),
        ("writes_what_fits_float16", partial(WritesOtherNumbers, lambda array: np.clip(array, -1e4, 1e4)), _EVERY),
        ("writes_another_version", partial(WritesMore, spec_version="0.999"), _WRITES),
        ("writes_a_date", partial(WritesMore, created="2026-11-28"), _WRITES),
        ("writes_a_model_that_nobody_gave", partial(WritesMore, base_model="llama, 30 layers"), _WRITES),
    )
)
