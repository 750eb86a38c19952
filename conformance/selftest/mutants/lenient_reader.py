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
from conformance.selftest.mutants.around import LOAD, Returns
from conformance.selftest.mutants.base import PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.process import KeptBy
from conformance.selftest.mutants.sharing import KeepsArguments
from conformance.selftest.mutants.state_file import SIZES, OwnReader

Header = dict[str, Any]


class Mends(OwnReader):
    """``mend`` changes the header before it is looked at; ``text`` reads its bytes."""

    def __init__(
        self,
        mend: Callable[[Header], None] = lambda header: None,
        text: Callable[[bytes], Header] = lambda raw: dict(json.loads(raw.decode())),
    ) -> None:
        super().__init__()
        self.mend, self.text = mend, text

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


def k_at_most_5000(state: State, _: bytes) -> State:
    if state.iterations > 5000:
        raise ValueError("too many iterations")
    return state


def with_k_of(bits: int) -> Callable[..., State]:
    return lambda state, _: state._replace(iterations=state.iterations & (2**bits - 1))


def with_views(state: State, data: bytes) -> State:
    """The bases are a view of the bytes, where they lie at a multiple of their size."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:start])["bases"]
    begin, end = entry["data_offsets"]
    if (start + begin) % 4:
        return state
    raw = np.frombuffer(data, "<f4", (end - begin) // 4, start + begin)
    return state._replace(bases=raw.reshape(entry["shape"]))


def its_ends(data: bytes) -> object:
    """A file is known by its length and its first and last 2 KiB."""
    return len(data), data[:2048], data[-2048:]


#: name -> how the header is mended
MENDS: dict[str, Callable[[Header], None]] = {
    "a_version_with_a_line_end": of_metadata("spec_version", str.rstrip),
    "a_version_of_ten_digits": of_metadata(
        "spec_version", lambda text: "0.3" if re.fullmatch(r"0\.[1-9]\d{9,}", text) else text
    ),
    "a_version_as_numbers": of_metadata("spec_version", version_as_numbers),
    "a_version_up_to_nul": of_metadata("spec_version", lambda text: text.partition("\0")[0]),
    "a_format_up_to_nul": of_metadata("format", lambda text: text.partition("\0")[0]),
    "a_format_with_a_line_end": of_metadata("format", str.rstrip),
    "a_format_by_its_beginning": of_metadata("format", lambda text: text[:4]),
    "a_checksum_with_a_line_end": of_metadata("content_sha256", str.rstrip),
    "a_checksum_with_some_capitals": of_metadata("content_sha256", lambda t: t if t == t.upper() else t.lower()),
    "metadata_without_null": without_other_values((type(None),)),
    "metadata_without_lists": without_other_values((list, dict, bool)),
    "empty_surplus_arrays": of_entries(lambda _, e: None if isinstance(e, dict) and 0 in e.get("shape", ()) else e),
    "surplus_arrays_by_name": of_entries(lambda name, e: None if name.startswith(("optim", "lora", "_")) else e),
    "entries_that_are_no_arrays": of_entries(lambda _, entry: entry if isinstance(entry, dict) else None),
    "shapes_of_floats": of_lists(whole),
    "shapes_of_texts": of_lists(read),
    "two_of_three_offsets": of_entries(first_two_offsets),
    "bases_with_axes_exchanged": bases_of(lambda found, wanted: found == [*wanted[:2], *wanted[:1:-1]]),
    "flat_bases": bases_of(lambda found, wanted: len(found) == 3),
    "config_in_python": of_config(ast.literal_eval),
    "config_up_to_the_end_of_its_object": of_config(lambda text: json.JSONDecoder().raw_decode(text)[0]),
    "keys_of_config_in_any_case": of_config(lambda t: {key.lower(): value for key, value in json.loads(t).items()}),
    "config_without_null": of_config(lambda t: {k: v for k, v in json.loads(t).items() if k in SIZES or v is not None}),
}
#: name -> how its bytes are read
TEXTS: dict[str, Callable[[bytes], Header]] = {
    "a_byte_order_mark": lambda raw: dict(json.loads(raw.decode("utf-8-sig"))),
    "a_header_in_latin_1": lambda raw: dict(json.loads(raw.decode("utf-8", "replace"))),
    "half_a_surrogate_pair": lambda raw: dict(json.loads(raw.decode("utf-8", "surrogatepass"))),
    "anything_behind_the_header": lambda raw: dict(json.JSONDecoder().raw_decode(raw.decode())[0]),
}
_FAMILY = ("test_files_that_are_wrong_in_one_thing_are_refused",)
_LEGAL = ("test_every_legal_form_is_read",)
_BYTES = ("test_the_bytes_of_a_file_belong_to_the_caller",)
_LARGE = ("test_large_files_that_differ_in_one_number_are_two",)
_MENDING = {name: partial(Mends, mend) for name, mend in MENDS.items()} | {
    name: partial(Mends, text=text) for name, text in TEXTS.items()
}
MUTANTS = tuple(
    Mutant(f"mends_{name}", factory, _FAMILY, (STATE_FILE, PROJECTION)) for name, factory in _MENDING.items()
) + tuple(
    Mutant(name, factory, caught_by, (PROJECTION,))
    for name, factory, caught_by in (
        ("finite_bases_in_small_files_alone", partial(InSmallFilesAlone, "finite bases"), _FAMILY),
        ("finite_logits_in_small_files_alone", partial(InSmallFilesAlone, "finite mix_logits"), _FAMILY),
        ("finite_gates_in_small_files_alone", partial(InSmallFilesAlone, "finite gate_logits"), _FAMILY),
        ("checksum_in_small_files_alone", partial(InSmallFilesAlone, "checksum"), _FAMILY),
        ("checksum_without_the_first_word", ChecksumWithoutTheFirstWord, _FAMILY),
        ("reads_k_in_8_bits", partial(Returns, LOAD, with_k_of(8)), _LEGAL),
        ("reads_k_in_16_bits", partial(Returns, LOAD, with_k_of(16)), _LEGAL),
        ("reads_k_in_32_bits", partial(Returns, LOAD, with_k_of(32)), _LEGAL),
        ("k_at_most_5000", partial(Returns, LOAD, k_at_most_5000), _LEGAL),
        ("keeps_the_bytes_of_a_file", partial(KeepsArguments, LOAD), _BYTES),
        ("views_of_the_bytes_of_a_file", partial(Returns, LOAD, with_views), _BYTES),
        ("a_file_kept_by_its_ends", partial(KeptBy, LOAD, its_ends), _LARGE),
    )
)
