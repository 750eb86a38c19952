"""Readers that mend what they should refuse, each in one thing, and readers that keep what they read."""

import ast
import json
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backends.interface import State
from conformance.selftest.mutants.base import PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.state_file import SIZES, OwnReader
from conformance.selftest.port import Array

Header = dict[str, Any]


class Mends(OwnReader):
    """``mend`` changes the header before it is looked at; ``text`` reads its bytes."""

    def __init__(self, mend: Callable[[Header], None], text: Callable[[bytes], Header] | None = None) -> None:
        super().__init__()
        self.mend, self.text = mend, text or (lambda raw: dict(json.loads(raw.decode())))

    def decoded(self, data: bytes) -> State:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        self.demand("whole file", start <= len(data))
        try:
            header = self.text(data[8:start])
            self.mend(header)
        except RecursionError as error:
            raise ValueError("nested without end") from error
        text = json.dumps(header).encode()
        return super().decoded(struct.pack("<Q", len(text)) + text + data[start:])


def of_metadata(key: str, mend: Callable[[str], str]) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        metadata = header.get("__metadata__")
        if isinstance(metadata, dict) and isinstance(metadata.get(key), str):
            metadata[key] = mend(metadata[key])

    return change


def of_config(mend: Callable[[str], Any]) -> Callable[[Header], None]:
    def change(text: str) -> str:
        try:
            return json.dumps(mend(text))
        except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
            return text

    return of_metadata("config", change)


def of_entries(mend: Callable[[str, Any], Any]) -> Callable[[Header], None]:
    """``mend`` returns an entry, or None to drop it."""

    def change(header: Header) -> None:
        for name in list(header):
            if name != "__metadata__":
                found = mend(name, header.pop(name))
                header |= {} if found is None else {name: found}

    return change


def of_lists(mend: Callable[[list[Any]], list[Any]]) -> Callable[[Header], None]:
    """Shapes and offsets of the arrays."""

    def change(_: str, entry: Any) -> Any:
        if isinstance(entry, dict):
            for field in ("shape", "data_offsets"):
                if isinstance(entry.get(field), list):
                    entry[field] = mend(entry[field])
        return entry

    return of_entries(change)


def first_two_offsets(_: str, entry: Any) -> Any:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return {**entry, "data_offsets": offsets[:2]} if isinstance(offsets, list) else entry


def without_other_values(kinds: tuple[type, ...]) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        metadata = header.get("__metadata__")
        if isinstance(metadata, dict):
            header["__metadata__"] = {key: value for key, value in metadata.items() if not isinstance(value, kinds)}

    return change


def whole(numbers: list[Any]) -> list[Any]:
    return [int(n) if isinstance(n, float) and n == n // 1 and abs(n) < 1e9 else n for n in numbers]


def read(numbers: list[Any]) -> list[Any]:
    return [int(n) if isinstance(n, str) and n.isdigit() else n for n in numbers]


def version_as_numbers(text: str) -> str:
    major, _, minor = text.partition(".")
    return f"{int(major)}.{int(minor)}" if re.fullmatch(r"[0-9]+\.[+0-9_]+", text) and major == "0" else text


def bases_of(any_shape: Callable[[list[int], list[int]], bool]) -> Callable[[Header], None]:
    """``bases`` is given the shape that config says, where the one that it has is taken for it."""

    def change(header: Header) -> None:
        try:
            sizes = json.loads(header["__metadata__"]["config"])
            wanted = [sizes[key] for key in ("layers", "streams", "rank", "hidden_size")]
            if any_shape(header["bases"]["shape"], wanted):
                header["bases"]["shape"] = wanted
        except (KeyError, TypeError, ValueError, RecursionError):
            return

    return change


def nothing(_: Header) -> None:
    return None


def first_object(raw: bytes) -> Header:
    return dict(json.JSONDecoder().raw_decode(raw.decode())[0])


class InSmallFilesAlone(OwnReader):
    """A check that takes long is left out of files of 64 KiB and more."""

    def __init__(self, check: str) -> None:
        super().__init__()
        self.check = check

    def decoded(self, data: bytes) -> State:
        self.left_out = self.check if len(data) >= 2**16 else ""
        return super().decoded(data)


class ChecksumWithoutTheFirstWord(OwnReader):
    def decoded(self, data: bytes) -> State:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        for bit in range(8):  # one that only differs there is taken for right
            changed = bytearray(data)
            if start < len(data):
                changed[start] ^= 1 << bit
                try:
                    super().decoded(bytes(changed))
                    self.left_out = "checksum"
                    break
                except Exception:
                    continue
        try:
            return super().decoded(data)
        finally:
            self.left_out = ""


class KBits(OwnReader):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.mask = 2**bits - 1

    def state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> State:
        return State(mix_logits, gate_logits, bases, iterations & self.mask)


class KAtMost(OwnReader):
    def config(self, metadata: dict[str, str]) -> dict[str, Any]:
        config = super().config(metadata)
        self.demand("a limit", config["iterations"] <= 5000)
        return config


class KeepsTheBytes(OwnReader):
    def load_state(self, data: bytes) -> State:
        self.kept = data
        return super().load_state(data)


class ViewsOfTheBytes(OwnReader):
    def decoded(self, data: bytes) -> State:
        found, start = super().decoded(data), 8 + struct.unpack("<Q", data[:8])[0]
        entry = json.loads(data[8:start])["bases"]
        begin, end = entry["data_offsets"]
        if (start + begin) % 4:
            return found
        raw = np.frombuffer(data, "<f4", (end - begin) // 4, start + begin)
        return State(found.mix_logits, found.gate_logits, raw.reshape(entry["shape"]), found.iterations)


class KeptByItsEnds(OwnReader):
    """A file is known by its length and its first and last 2 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Any, State] = {}

    def load_state(self, data: bytes) -> State:
        key = (len(data), data[:2048], data[-2048:])
        if key not in self.known:
            self.known[key] = super().load_state(data)
        found = self.known[key]
        return State(found.mix_logits.copy(), found.gate_logits.copy(), found.bases.copy(), found.iterations)


MENDS: dict[str, tuple[Callable[[Header], None], Callable[[bytes], Header] | None]] = {
    "a_version_with_a_line_end": (of_metadata("spec_version", str.rstrip), None),
    "a_version_of_ten_digits": (
        of_metadata("spec_version", lambda t: "0.3" if re.fullmatch(r"0\.[1-9]\d{9,}", t) else t),
        None,
    ),
    "a_version_as_numbers": (of_metadata("spec_version", version_as_numbers), None),
    "a_version_up_to_nul": (of_metadata("spec_version", lambda text: text.partition("\0")[0]), None),
    "a_format_up_to_nul": (of_metadata("format", lambda text: text.partition("\0")[0]), None),
    "a_format_with_a_line_end": (of_metadata("format", str.rstrip), None),
    "a_format_by_its_beginning": (of_metadata("format", lambda text: text[:4]), None),
    "a_checksum_with_a_line_end": (of_metadata("content_sha256", str.rstrip), None),
    "a_checksum_with_some_capitals": (
        of_metadata("content_sha256", lambda t: t if t == t.upper() else t.lower()),
        None,
    ),
    "metadata_without_null": (without_other_values((type(None),)), None),
    "metadata_without_lists": (without_other_values((list, dict, bool)), None),
    "empty_surplus_arrays": (
        of_entries(lambda n, e: None if isinstance(e, dict) and 0 in e.get("shape", ()) else e),
        None,
    ),
    "surplus_arrays_by_name": (
        of_entries(lambda name, e: None if name.startswith(("optim", "lora", "_")) else e),
        None,
    ),
    "entries_that_are_no_arrays": (of_entries(lambda _, entry: entry if isinstance(entry, dict) else None), None),
    "shapes_of_floats": (of_lists(whole), None),
    "shapes_of_texts": (of_lists(read), None),
    "two_of_three_offsets": (of_entries(first_two_offsets), None),
    "bases_with_axes_exchanged": (bases_of(lambda found, wanted: found == [*wanted[:2], *wanted[:1:-1]]), None),
    "flat_bases": (bases_of(lambda found, wanted: len(found) == 3), None),
    "config_in_python": (of_config(ast.literal_eval), None),
    "config_up_to_the_end_of_its_object": (of_config(lambda text: json.JSONDecoder().raw_decode(text)[0]), None),
    "keys_of_config_in_any_case": (
        of_config(lambda t: {key.lower(): value for key, value in json.loads(t).items()}),
        None,
    ),
    "config_without_null": (
        of_config(lambda t: {k: v for k, v in json.loads(t).items() if k in SIZES or v is not None}),
        None,
    ),
    "a_byte_order_mark": (nothing, lambda raw: dict(json.loads(raw.decode("utf-8-sig")))),
    "a_header_in_latin_1": (nothing, lambda raw: dict(json.loads(raw.decode("utf-8", "replace")))),
    "half_a_surrogate_pair": (nothing, lambda raw: dict(json.loads(raw.decode("utf-8", "surrogatepass")))),
    "anything_behind_the_header": (nothing, first_object),
}
_FAMILY = ("test_files_that_are_wrong_in_one_thing_are_refused",)
_LEGAL = ("test_every_legal_form_is_read",)
MUTANTS = tuple(
    Mutant(f"mends_{name}", partial(Mends, *how), _FAMILY, (STATE_FILE, PROJECTION)) for name, how in MENDS.items()
) + tuple(
    Mutant(name, factory, caught_by, (PROJECTION,))
    for name, factory, caught_by in (
        ("finite_bases_in_small_files_alone", partial(InSmallFilesAlone, "finite bases"), _FAMILY),
        ("finite_logits_in_small_files_alone", partial(InSmallFilesAlone, "finite mix_logits"), _FAMILY),
        ("finite_gates_in_small_files_alone", partial(InSmallFilesAlone, "finite gate_logits"), _FAMILY),
        ("checksum_in_small_files_alone", partial(InSmallFilesAlone, "checksum"), _FAMILY),
        ("checksum_without_the_first_word", ChecksumWithoutTheFirstWord, _FAMILY),
        ("reads_k_in_8_bits", partial(KBits, 8), _LEGAL),
        ("reads_k_in_16_bits", partial(KBits, 16), _LEGAL),
        ("reads_k_in_32_bits", partial(KBits, 32), _LEGAL),
        ("k_at_most_5000", KAtMost, _LEGAL),
        ("keeps_the_bytes_of_a_file", KeepsTheBytes, ("test_the_bytes_of_a_file_belong_to_the_caller",)),
        ("views_of_the_bytes_of_a_file", ViewsOfTheBytes, ("test_the_bytes_of_a_file_belong_to_the_caller",)),
        ("a_file_kept_by_its_ends", KeptByItsEnds, ("test_large_files_that_differ_in_one_number_are_two",)),
    )
)
