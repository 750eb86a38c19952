"""Golden state files: some that every reader must accept, and for each way of being wrong one that it must refuse.

Written byte by byte after spec/60-state-file.md, so that no library decides what is in them.

Clauses: VEC-5, STATE-1, STATE-2, STATE-4..STATE-8.
"""

import hashlib
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.golden_vectors.cases import Case, Output
from reference import SPEC_VERSION

Array = NDArray[Any]
CONFIG = {"hidden_size": 7, "streams": 3, "rank": 2, "iterations": 9, "layers": 2}
KEYS = ("mix_logits", "gate_logits", "bases")
DETAILS = {"checksum": "STATE-6", "version": "STATE-7", "config": "STATE-8"}  # by a part of the name of a refused file


def state_arrays() -> dict[str, Array]:
    """Two layers, n = 3, r = 2, d = 7."""
    rng = np.random.default_rng(60)
    shapes = {"mix_logits": (2, 3, 3), "gate_logits": (2,), "bases": (2, 3, 2, 7)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def state_file(arrays: dict[str, Array], order: tuple[str, ...] = KEYS, **changed: Any) -> bytes:
    """The bytes of a state file, its arrays in the physical ``order``; ``changed``: other metadata, None to omit."""
    metadata = {"format": "crma", "spec_version": SPEC_VERSION, "config": json.dumps(CONFIG), **changed}
    header: dict[str, Any] = {"__metadata__": {key: text for key, text in metadata.items() if text is not None}}
    body = b""
    for key in order:
        raw = arrays[key].tobytes()
        dtype = {"float32": "F32", "float16": "F16"}[arrays[key].dtype.name]
        header[key] = {
            "dtype": dtype,
            "shape": list(arrays[key].shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    return assemble(header, body)


def assemble(header: dict[str, Any], body: bytes, unaligned: bool = False) -> bytes:
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + unaligned)  # else the arrays start at a multiple of 8 bytes
    return with_header(text, body)


def with_header(text: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def checksum(arrays: dict[str, Array], config: str = json.dumps(CONFIG)) -> str:
    """Of the text of config and of the arrays in the order of the clause. Clause: STATE-6."""
    return hashlib.sha256(config.encode() + b"".join(arrays[key].tobytes() for key in KEYS)).hexdigest()


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:start]), data[start:]


def accepted_files() -> dict[str, bytes]:
    arrays = state_arrays()
    return {
        "state": state_file(arrays),
        "state-other-order": state_file(arrays, ("bases", "gate_logits", "mix_logits")),
        "state-more-metadata": state_file(arrays, spec_version="0.9", base_model="a model", unknown="ignored"),
        "state-checksum": state_file(arrays, ("bases", "gate_logits", "mix_logits"), content_sha256=checksum(arrays)),
        "state-unaligned": assemble(*taken_apart(state_file(arrays)), unaligned=True),
    }


def refused_files() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes, and why a reader must refuse them."""
    arrays = state_arrays()
    good = state_file(arrays)
    header, body = taken_apart(good)
    extra = {**arrays, "optimizer": np.zeros(1, np.float32)}
    (begin, end), size = header["mix_logits"]["data_offsets"], len(body)
    metadata = header["__metadata__"]
    nested = b'{"a":' * 2000 + b"0" + b"}" * 2000

    def shaped(*shape: float) -> bytes:
        return assemble({**header, "mix_logits": {**header["mix_logits"], "shape": shape}}, body)

    def lying_at(spans: dict[str, list[int]], body: bytes = body) -> bytes:
        return assemble({**header, **{key: {**header[key], "data_offsets": spans[key]} for key in spans}}, body)

    def later(*keys: str) -> dict[str, list[int]]:
        return {key: [offset + 8 for offset in header[key]["data_offsets"]] for key in keys}

    def config(**changed: Any) -> bytes:
        return state_file(arrays, config=json.dumps({**CONFIG, **changed}))

    with_hole = lying_at(later(*KEYS[1:]), body[:end] + bytes(8) + body[end:])
    shifted = lying_at({"mix_logits": [begin, end - 4], "gate_logits": [end - 4, end + 8]})
    spoiled = {value: {**arrays, "bases": arrays["bases"].copy()} for value in (np.nan, np.inf)}
    for value, several in spoiled.items():
        several["bases"][1, 2, 1, 3] = value
    in_gates = {**arrays, "gate_logits": np.asarray([0.5, np.nan], np.float32)}
    shape = {**arrays, "mix_logits": arrays["mix_logits"].reshape(1, 3, 6)}
    half = {**arrays, "gate_logits": arrays["gate_logits"].astype(np.float16)}
    return {
        "empty": (b"", "the file is empty"),
        "cut-off": (good[:-4], "the last number is missing"),
        "surplus-bytes": (good + b"\0\0\0\0", "there are bytes after the last array"),
        "header-length": (struct.pack("<Q", 2**63 - 1) + good[8:], "the header would be longer than any file"),
        "header-not-json": (good[:8] + b"x" + good[9:], "the header is not JSON"),
        "header-not-utf8": (with_header(b'{"\xff":0}', body), "the header is not UTF-8"),
        "header-nested": (with_header(nested, body), "the header is nested 2000 deep"),
        "shape-negative": (shaped(-2, -3, 3), "a shape with negative sizes, whose product is right"),
        "shape-overflow": (shaped(2**32, 2**32, 18), "the product of a shape overflows 64 bits"),
        "shape-fraction": (shaped(2.5, 3, 3), "a size that is no integer"),
        "offsets-negative": (lying_at({"mix_logits": [-end, end]}), "an offset is negative"),
        "offsets-reversed": (lying_at({"mix_logits": [end, begin]}), "an array ends before it begins"),
        "offsets-hole": (with_hole, "bytes between two arrays belong to neither"),
        "offsets-outside": (lying_at({"bases": [size, size + 336]}), "an array lies behind the end of the file"),
        "offsets-overlap": (lying_at({"gate_logits": [begin, begin + 8]}), "two arrays share bytes"),
        "offsets-too-short": (lying_at({"mix_logits": [begin, end - 4]}), "fewer bytes than the shape needs"),
        "offsets-unlike-shapes": (shifted, "no hole, no overlap, and not the bytes that the shapes need"),
        "other-format": (state_file(arrays, format="lora"), "metadata: format is not crma"),
        "no-metadata": (assemble({key: header[key] for key in KEYS}, body), "metadata: missing"),
        "metadata-number": (
            assemble({**header, "__metadata__": {**metadata, "layers": 2}}, body),
            "metadata: a number",
        ),
        "newer-version": (state_file(arrays, spec_version="1000.0"), "metadata: a newer major spec_version"),
        "no-config": (state_file(arrays, config=None), "metadata: config is missing"),
        "config-not-json": (state_file(arrays, config="{"), "metadata: config is not JSON"),
        "config-not-object": (state_file(arrays, config="[7, 3, 2, 9, 2]"), "metadata: config is no JSON object"),
        "config-text": (config(streams="3"), "config: a number is given as text"),
        "config-without-rank": (
            state_file(arrays, config=json.dumps({key: CONFIG[key] for key in CONFIG if key != "rank"})),
            "config does not say the rank",
        ),
        "config-layers": (config(layers=3), "config names another number of layers than the arrays have"),
        "config-iterations": (config(iterations=0), "config: iterations is below 1"),
        "missing-array": (state_file(arrays, ("mix_logits", "bases")), "gate_logits is missing"),
        "surplus-array": (state_file(extra, (*KEYS, "optimizer")), "an array that is no part of the state"),
        "wrong-shape": (state_file(shape), "mix_logits is not (layers, n, n)"),
        "wrong-dtype": (state_file(half), "gate_logits is not float32"),
        "nan": (state_file(spoiled[np.nan]), "bases holds a NaN"),
        "infinity": (state_file(spoiled[np.inf]), "bases holds an infinity"),
        "nan-gate": (state_file(in_gates), "gate_logits holds a NaN"),
        "offsets-begin-late": (lying_at(later(*KEYS), bytes(8) + body), "bytes before the first array"),
        "header-length-wraps": (struct.pack("<Q", 2**64 - 8) + good[8:], "8 + the length of the header is 2^64"),
        "checksum": (state_file(arrays, content_sha256=checksum(in_gates)), "content_sha256 is that of other content"),
        "checksum-capitals": (
            state_file(arrays, content_sha256=checksum(arrays).upper()),
            "content_sha256 in capitals",
        ),
        "no-version": (state_file(arrays, spec_version=None), "metadata: spec_version is missing"),
        "version-form": (state_file(arrays, spec_version="0.2.0"), "metadata: spec_version is no MAJOR.MINOR"),
        "config-fraction": (config(iterations=9.7), "config: iterations is no integer"),
        "config-float": (config(layers=2.0), "config: a size is a floating-point number"),
        "config-true": (config(iterations=True), "config: iterations is true"),
        "config-unknown-key": (config(temperature=2), "config: a key that is not known"),
    }


def state_cases() -> list[Case]:
    outputs = {
        key: Output(array, "STATE-1: the very bits", {"float32": (0.0, 0.0), "float64": (0.0, 0.0)})
        for key, array in state_arrays().items()
    }
    drawn, k = "normal numbers", CONFIG["iterations"]
    cases = [
        Case(name, "state_file", ("STATE-1", "STATE-2", "STATE-5"), drawn, k, {}, outputs, f"{name}.safetensors")
        for name in accepted_files()
    ]
    for name, (_, why) in refused_files().items():
        file = f"refuse-{name}.safetensors"
        clauses = ("STATE-4", *(clause for part, clause in DETAILS.items() if part in name))
        cases.append(Case(f"refuse state, {name}", "state_file", clauses, drawn, None, file=file, refuse=why))
    return cases


def state_files() -> dict[str, bytes]:
    """File name -> bytes, of all of them."""
    files = {f"{name}.safetensors": data for name, data in accepted_files().items()}
    return files | {f"refuse-{name}.safetensors": data for name, (data, _) in refused_files().items()}
