"""State files in every legal form, and in families of forms that a reader must refuse.

Written byte by byte after spec/60-state-file.md. Clauses: STATE-1 to STATE-8.
"""

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.golden_vectors.state_files import (
    CONFIG,
    KEYS,
    assemble,
    checksum,
    state_arrays,
    state_file,
    taken_apart,
    with_header,
)

Array = NDArray[Any]
Variants = Iterator[tuple[str, bytes]]
#: of each size in bytes, what a reader may take for float32, or for two of them
OTHER_DTYPES = {"F64": 8, "I64": 8, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "BOOL": 1, "f32": 4}
VERSIONS = [
    "",
    "0",
    "0.",
    ".2",
    "0.2.0",
    "00.2",
    "0.02",
    "v0.2",
    "0.2 ",
    " 0.2",
    "0.2a",
    "-0.2",
    "0,2",
    "٠.٢",
    "1e0.2",
    "none",
    # what a library's parser of numbers, a pattern with $, a text that ends at NUL or a counted number of digits takes
    *(
        "0.3\n",
        "0.3\0x",
        "0.+3",
        "0.0_3",
        "0.3e0",
        "0x0.3",
        "0.1234567890",
        "0.0000000003",
        "0.-0",
        "0. 3",
        "\ufeff0.3",
    ),
]
#: K for which 8, 16 or 32 bits are too few, or that some limit refuses; the largest that every reader of JSON keeps
LARGE_K = (127, 128, 255, 256, 257, 5001, 32768, 40000, 65545, 2**31 + 9, 2**32 + 9, 2**53 - 1)
NO_TEXTS: tuple[Any, ...] = (None, True, 7, 0.5, [], ["x"], {}, {"a": "b"})
#: of a size in config, JSON texts that are no integer >= 1; and integers that no array can have
NO_SIZES = ["0", "-1", "2.0", "9.7", "2e0", "true", "false", "null", '"2"', "[2]", "{}", "1e400", "NaN"]
TOO_LARGE = [str(2**63), str(2**64)]


# -- legal --


def legal_files() -> Variants:
    """All of them hold ``state_arrays()`` and K = 9."""
    arrays, spaced = state_arrays(), json.dumps(dict(reversed(CONFIG.items())), indent=3)
    for order in itertools.permutations(KEYS):
        yield f"checksum, arrays as {order}", state_file(arrays, order, content_sha256=checksum(arrays))
    yield (
        "checksum, config spaced and in another order",
        state_file(arrays, config=spaced, content_sha256=checksum(arrays, spaced)),
    )
    yield "config without spaces", state_file(arrays, config=json.dumps(CONFIG, separators=(",", ":")))
    yield "metadata not in ASCII", state_file(arrays, author="Öß Ж 語 \u0001 \U0001f600", base_model="λ")
    yield "a long text among the metadata", state_file(arrays, notes="x" * 9000)
    yield "metadata of an empty key and an empty value", state_file(arrays, KEYS, **{"": "", "notes": ""})
    yield "many keys", state_file(arrays, KEYS, **{f"key {number}": "x" * number for number in range(300)})
    for version in ("0.0", "0.1", "0.2", "0.10", "0.999999999"):
        yield f"spec_version {version}", state_file(arrays, spec_version=version)
    header, body = taken_apart(state_file(arrays))
    for name, text in {
        "spaces behind the header": json.dumps(header) + " " * 77,
        "a header with line ends": json.dumps(header, indent=2) + "\n \t\r\n",
        "a header with escapes": json.dumps(header).replace("crma", "\\u0063rma"),
    }.items():
        yield name, with_header(text.encode(), body)


def large_arrays() -> dict[str, Array]:
    """Of 300 layers: nine times 64 KiB, of which no number is like another of its array."""
    rng = np.random.default_rng(61)
    shapes = {"mix_logits": (300, 3, 3), "gate_logits": (300,), "bases": (300, 3, 2, 75)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def large_file(arrays: dict[str, Array], **metadata: Any) -> bytes:
    """A state file of ``large_arrays()``, or of arrays with other numbers."""
    config = json.dumps({**CONFIG, "hidden_size": 75, "layers": 300})
    return state_file(arrays, config=config, **(metadata or {"content_sha256": checksum(arrays, config)}))


# -- to be refused --


def with_other_numbers() -> Variants:
    """NaN and infinities in every array, in its first and in its last entry, in its first and in its last layer."""
    for key, bad in itertools.product(KEYS, (np.nan, np.inf, -np.inf)):
        for layer, entry in itertools.product((0, -1), (0, -1)):
            arrays = state_arrays()
            arrays[key].reshape(2, -1)[layer, entry] = bad
            yield f"{bad} in {key}, layer {layer}, entry {entry}", state_file(arrays)
        arrays = large_arrays()
        arrays[key].reshape(-1)[arrays[key].size // 2] = bad
        yield f"{bad} in the middle of a large {key}", large_file(arrays)


def with_other_dtypes() -> Variants:
    """Of the same number of bytes, with a shape that fits the dtype, and with the shape that float32 would have."""
    header, body = taken_apart(state_file(state_arrays()))
    for key, (dtype, size) in itertools.product(KEYS, OTHER_DTYPES.items()):
        shape = header[key]["shape"]
        yield f"{key} as {dtype}", assemble({**header, key: {**header[key], "dtype": dtype}}, body)
        if shape[-1] * 4 % size == 0:
            fitting = {**header[key], "dtype": dtype, "shape": [*shape[:-1], shape[-1] * 4 // size]}
            yield f"{key} as {dtype} of a fitting shape", assemble({**header, key: fitting}, body)


def with_other_shapes() -> Variants:
    """Every axis of every array longer or shorter by one than config and the other arrays say; an axis more."""
    for key, array in state_arrays().items():
        for axis, change in itertools.product(range(array.ndim), (-1, 1)):
            shape = [size + change * (i == axis) for i, size in enumerate(array.shape)]
            yield f"{key} {shape}", state_file({**state_arrays(), key: np.resize(array, shape).astype(np.float32)})
        for shape in ([1, *array.shape], [*array.shape, 1], [array.size])[: 3 if array.ndim > 1 else 2]:
            yield f"{key} {shape}", state_file({**state_arrays(), key: array.reshape(shape)})
    bases = state_arrays()["bases"]
    for axes in itertools.permutations(range(4)):  # the right number of bytes, in another shape
        if bases.transpose(axes).shape != bases.shape:
            yield f"bases, axes {axes}", state_file({**state_arrays(), "bases": bases.transpose(axes).copy()})
    for other in ((2, 6, 7), (6, 2, 7), (2, 3, 14), (84,), (2, 3, 2, 7, 1), (2, 1, 3, 2, 7)):
        yield f"bases {other}", state_file({**state_arrays(), "bases": bases.reshape(other)})
    header, body = taken_apart(state_file(state_arrays()))
    forms: tuple[Callable[[int], Any], ...] = (float, str, lambda size: [size])
    for key, form in itertools.product(KEYS, forms):
        entry = {**header[key], "shape": [form(size) for size in header[key]["shape"]]}
        yield f"{key} {entry['shape']}", assemble({**header, key: entry}, body)
    none = {key: array[:0] for key, array in state_arrays().items()}
    yield "no layers", state_file(none, config=json.dumps({**CONFIG, "layers": 0}))


def with_other_config() -> Variants:
    """Every size missing, changed, or no integer >= 1; a key that is none of them; n r > d."""
    arrays = state_arrays()
    for key in CONFIG:
        yield f"config without {key}", state_file(arrays, config=json.dumps({k: CONFIG[k] for k in CONFIG if k != key}))
        same = (f"{CONFIG[key]}.0", f"{CONFIG[key]}e0", f"{CONFIG[key]}0e-1", f'"{CONFIG[key]}"', f"[{CONFIG[key]}]")
        for value in (*NO_SIZES, *same, *(TOO_LARGE if key != "iterations" else ())):  # K has no upper limit
            text = json.dumps({**CONFIG, key: "VALUE"}).replace('"VALUE"', value)
            yield f"{key} {value}", state_file(arrays, config=text)
        if key != "iterations":
            for value in (CONFIG[key] + 1, CONFIG[key] - 1):
                yield f"{key} {value}", state_file(arrays, config=json.dumps({**CONFIG, key: value}))
    yield "a key that is not known", state_file(arrays, config=json.dumps({**CONFIG, "temperature": 2}))
    wide = {**arrays, "bases": np.ones((2, 3, 3, 7), np.float32)}
    yield "n r > d", state_file(wide, config=json.dumps({**CONFIG, "rank": 3}))
    right = json.dumps(CONFIG)
    behind = [right + more for more in ("x", "\0", ";", "\n{}", "," + right, right, "//", "\ufeff")]
    literal = [
        repr(CONFIG),
        right.replace("7", "0x7"),
        right.replace("7", "07"),
        right.replace("7", "+7"),
        right[:-1] + ",}",
    ]
    nested = ["[" * depth + "]" * depth for depth in (600, 100_000)]
    for text in ("", "null", "7", "{}", "[]", '""', right[:-1], *behind, *literal, *nested, "\ufeff" + right):
        yield f"config {text[:60]!r}", state_file(arrays, config=text)
    for key in CONFIG:
        for other in (key.upper(), key.title(), f"num_{key}", f" {key}"):
            renamed = json.dumps({(other if name == key else name): CONFIG[name] for name in CONFIG})
            yield f"config with {other!r} for {key!r}", state_file(arrays, config=renamed)
    for value in (None, 0, "", [], {}):
        yield (
            f"a key that is not known, {value!r}",
            state_file(arrays, config=json.dumps({**CONFIG, "temperature": value})),
        )


def with_other_versions() -> Variants:
    """No version, a newer major one, and what is no version."""
    for version in (None, *VERSIONS, "1.0", "1.2", "10.0", "1000000000000.0"):
        yield f"spec_version {version!r}", state_file(state_arrays(), spec_version=version)
    for name in (None, "", "CRMA", "crma ", " crma", "lora", "crma\n", "crma\0", "crma-2", "crma2", "crm", "xcrma"):
        yield f"format {name!r}", state_file(state_arrays(), format=name)


def with_other_metadata() -> Variants:
    """Values that are no texts, of the keys that are known and of others; a tensor or another entry too many."""
    header, body = taken_apart(state_file(state_arrays()))
    metadata = header["__metadata__"]
    for key, value in itertools.product((*metadata, "base_model", "content_sha256", "author"), NO_TEXTS):
        yield f"{key} {value!r}", assemble({**header, "__metadata__": {**metadata, key: value}}, body)
    for value in (*NO_TEXTS, "", "crma"):
        if value != {}:
            yield f"metadata {value!r}", assemble({**header, "__metadata__": value}, body)
    for name in ("optimizer", "lora", "_extra", "mix_logits.1", "MIX_LOGITS", "", "__metadata"):
        entries: tuple[Any, ...] = (
            {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2},
            7,
            None,
            "x",
            [],
            {},
        )
        for entry in entries:
            yield f"an entry {name!r} {entry!r}", assemble({**header, name: entry}, body)


def with_other_texts() -> Variants:
    """A header that is no JSON text in UTF-8, or that is nested without end."""
    header, body = taken_apart(state_file(state_arrays(), author="Ä"))
    text = json.dumps(header, ensure_ascii=False)
    for name, raw in {
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "Latin-1": text.encode("latin-1"),
        "half a surrogate pair": text.replace("Ä", "\ud800").encode("utf-8", "surrogatepass"),
        "UTF-16": text.encode("utf-16-le"),
        "zeros behind it": text.encode() + bytes(8),
        "a second object behind it": text.encode() + b"{}",
        "a comma too many": text[:-1].encode() + b",}",
        "apostrophes": text.replace('"', "'").encode(),
    }.items():
        yield f"a header with {name}", with_header(raw, body)
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        for depth in (2000, 30_000, 200_000):
            nested = opening * depth + "0" + closing * depth
            yield f"a header of {depth} levels of {opening}", with_header(nested.encode(), body)
            inside = text[:-1] + f', "x": {nested}}}'
            yield f"an entry of {depth} levels of {opening}", with_header(inside.encode(), body)


def with_other_checksums() -> Variants:
    """Of other content, and what is no checksum."""
    arrays, config = state_arrays(), json.dumps(CONFIG)
    right = checksum(arrays)
    other = {**arrays, "gate_logits": arrays["gate_logits"][::-1].copy()}
    for name, text in {
        "of other arrays": checksum(other),
        "of another config": checksum(arrays, config + " "),
        "with one digit changed": right[:-1] + ("0" if right[-1] != "0" else "1"),
        "in capitals": right.upper(),
        "cut": right[:-1],
        "too long": right + "0",
        "empty": "",
        "no digits": "z" * 64,
        "with a prefix": "sha256:" + right,
    }.items():
        if text != right:
            yield f"checksum {name}", state_file(arrays, content_sha256=text)
    for name, text in {f"digits and {c!r}": right + c for c in "\n \0"}.items():
        yield f"checksum, {name}", state_file(arrays, content_sha256=text)
    for place, digit in enumerate(right):
        if digit.isalpha():  # one capital alone
            mixed = right[:place] + digit.upper() + right[place + 1 :]
            yield f"checksum with a capital at {place}", state_file(arrays, content_sha256=mixed)
    yield "a wrong checksum of a large file", large_file(large_arrays(), content_sha256="0" * 64)
    for key, data in itertools.product(KEYS, (state_file(arrays, content_sha256=right), large_file(large_arrays()))):
        header, body = taken_apart(data)
        begin, end = header[key]["data_offsets"]
        for place in (begin, (begin + end) // 8 * 4, end - 4):
            spoilt = bytearray(data)
            spoilt[len(data) - len(body) + place] ^= 1
            yield f"one bit of {key} changed at {place}, of {len(data)} bytes", bytes(spoilt)


def with_other_offsets() -> Variants:
    """Bytes that no array covers, before, between and behind them; arrays that overlap, or lie elsewhere."""
    header, body = taken_apart(state_file(state_arrays()))
    for place, key in enumerate(KEYS):
        begin = header[key]["data_offsets"][0]
        for size in (1, 4, 8):
            moved = {
                name: {**header[name], "data_offsets": [offset + size for offset in header[name]["data_offsets"]]}
                for name in KEYS[place:]
            }
            yield (
                f"{size} bytes before {key}",
                assemble({**header, **moved}, body[:begin] + bytes(size) + body[begin:]),
            )
    yield "8 bytes behind the arrays", assemble(header, body + bytes(8))
    for key in KEYS:
        begin, end = header[key]["data_offsets"]
        spans: list[Any] = [
            [begin + 4, end + 4],
            [begin - 4, end - 4],
            [end, begin],
            [begin, begin],
            [0.5, end],
            [begin],
            [],
            [begin, end, end],
            [float(begin), float(end)],
            [str(begin), str(end)],
            f"{begin},{end}",
            end,
            None,
        ]
        for span in spans:
            yield f"{key} at {span}", assemble({**header, key: {**header[key], "data_offsets": span}}, body)
        for left_out in ("dtype", "shape", "data_offsets"):
            entry = {name: value for name, value in header[key].items() if name != left_out}
            yield f"{key} without {left_out}", assemble({**header, key: entry}, body)


def with_other_header_lengths() -> Variants:
    """Beyond the file, up to those that wrap in 64 bits; and shorter than the header."""
    data = state_file(state_arrays())
    length = struct.unpack("<Q", data[:8])[0]
    wrapping = [2**64 - 8, 2**64 - 1, 2**64 - 8 + length, 2**63, 2**63 + length, 2**32 + length, 2**31]
    for wrong in (0, 1, length - 1, length + 1, length + 8, len(data), *wrapping):
        if wrong < 2**64:
            yield f"header of {wrong} bytes", struct.pack("<Q", wrong) + data[8:]
    yield "a length in the order of big machines", struct.pack(">Q", length) + data[8:]
    for count in (0, 1, 7, 8):
        yield f"{count} bytes", data[:count]


FAMILIES: dict[str, Callable[[], Variants]] = {
    "numbers": with_other_numbers,
    "dtypes": with_other_dtypes,
    "shapes": with_other_shapes,
    "config": with_other_config,
    "versions": with_other_versions,
    "metadata": with_other_metadata,
    "texts": with_other_texts,
    "checksums": with_other_checksums,
    "offsets": with_other_offsets,
    "header lengths": with_other_header_lengths,
}
