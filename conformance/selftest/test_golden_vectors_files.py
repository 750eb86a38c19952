"""The stored golden vectors: as the reference computes, readable without this project, able to fail. VEC-1..VEC-7."""

import hashlib
import json
import re
import struct
from math import isfinite, prod
from pathlib import Path

import pytest

import spec
from conformance.golden_vectors import generate as generating
from conformance.golden_vectors.format import FOLDER, GoldenVectorError, load_files, read, read_group
from conformance.golden_vectors.generate import differences, generate, main
from conformance.selftest.programs import run
from reference.errors import CRMAError

GROUP = "adapter-gates"
FILES = load_files()


@pytest.fixture(scope="module")
def fresh():
    return generate()


# -- a reader without a line of this project, and without NumPy --


def independent_reader(folder):
    """(case, {array name: (numbers, entry)}) of everything in the folder."""
    kinds = {"<f8": ("d", 8), "<f4": ("f", 4), "<f2": ("e", 2), "<bf16": ("H", 2)}
    for listed in json.loads((folder / "index.json").read_text())["groups"]:
        header = json.loads((folder / listed["header"]).read_text())
        data = (folder / header["data"]).read_bytes()
        assert len(header["cases"]) == listed["cases"]
        assert len(data) == header["data_bytes"]
        for case in header["cases"]:
            arrays = {}
            for name, entry in case["arrays"].items():
                letter, size = kinds[entry["dtype"]]
                count = prod(entry["shape"])
                assert entry["bytes"] == count * size
                assert entry["offset"] % 8 == 0
                arrays[name] = (struct.unpack_from(f"<{count}{letter}", data, entry["offset"]), entry)
            yield case, arrays


def accepted(actual, expected, bound):
    pairs = zip(actual, expected, strict=True)
    return all(abs(a - e) <= max(abs(e) * bound["relative"], bound["absolute"]) for a, e in pairs)


@pytest.mark.clause("VEC-1", "VEC-2")
def test_an_independent_reader_reads_all_of_them():
    dtypes = set()
    names = []
    for case, arrays in independent_reader(FOLDER):
        names.append(case["name"])
        for numbers, entry in arrays.values():
            dtypes.add((entry["role"], entry["dtype"]))
            assert entry["role"] == "input" or not {"refuse", "not_finite"} & set(case)
            assert {"refuse", "not_finite"} & set(case) or all(isfinite(number) for number in numbers)
    assert dtypes == {("input", "<f4"), ("input", "<f2"), ("input", "<bf16"), ("output", "<f8"), ("output", "<f4")}
    assert len(names) > 250
    assert len(set(names)) == len(names)


@pytest.mark.clause("VEC-3", "ACC-2")
def test_zeros_and_an_untouched_x_fail_everywhere():
    tried = 0
    for case, arrays in independent_reader(FOLDER):
        for name, (expected, entry) in arrays.items():
            if entry["role"] == "input" or not any(expected):  # n = 1 and no tokens: zeros are right
                tokens = arrays["x"][1]["shape"] if "x" in arrays else entry["shape"]
                assert entry["role"] == "input" or 0 in tokens or arrays["mix_logits"][1]["shape"][-1] == 1, case
                continue
            for bound in entry["tolerance"].values():
                assert accepted(expected, expected, bound)
                assert not accepted([0.0] * len(expected), expected, bound), (case["name"], name)
                assert not accepted([float("nan")] * len(expected), expected, bound)
                tried += 1
            if name == "y" and case["arrays"]["x"]["dtype"] == "<f2":
                assert not accepted(arrays["x"][0], expected, entry["tolerance"]["float16"])
    assert tried > 500


@pytest.mark.clause("VEC-4")
def test_coverage_is_what_the_page_says():
    numeric = [(case, arrays) for case, arrays in independent_reader(FOLDER) if "mix_logits" in arrays]
    projections = [pair for pair in numeric if pair[0]["operation"].startswith("sinkhorn_projection")]
    for operation in ("sinkhorn_projection", "sinkhorn_projection_vjp"):
        seen = {
            (a["mix_logits"][1]["shape"][-1], c["iterations"]) for c, a in projections if c["operation"] == operation
        }
        assert {(n, k) for n in (1, 2, 3, 4, 8, 16, 64) for k in (1, 3, 20)} <= seen
        shapes = [a["mix_logits"][1]["shape"] for c, a in projections if c["operation"] == operation]
        assert [2, 3, 4, 4] in shapes
        assert [0, 4, 4] in shapes
    kinds = {case["drawn"].partition(" logits")[0] for case, _ in projections}
    assert {"normal", "near permutation", "triangular", "block", "rank one", "constant", "lattice"} <= kinds
    finite = [number for case, arrays in numeric if "refuse" not in case for number in arrays["mix_logits"][0]]
    assert max(map(abs, finite)) > 1e37
    gates = {arrays["gate_logit"][0][0] for case, arrays in numeric if case["operation"] == "adapter_vjp"}
    assert {-12.0, -5.0, 0.0, 12.0} <= gates


@pytest.mark.clause("VEC-7")
def test_every_invalid_input_has_a_case_forward_and_backward():
    cases = [case for case, _ in independent_reader(FOLDER) if {"refuse", "not_finite"} & set(case)]
    refused = {(case["operation"], case["name"]) for case in cases if "refuse" in case}
    for operation, vjp in (("sinkhorn_projection", "sinkhorn_projection_vjp"), ("adapter_forward", "adapter_vjp")):
        names = {name for of, name in refused if of == operation}
        assert len(names) >= 4
        assert {(vjp, f"{name}, gradient") for name in names} <= refused
        assert sum(of == vjp for of, _ in refused) > len(names), "and cotangents of another shape"
    passed = [(case["operation"], case["not_finite"]) for case in cases if "not_finite" in case]
    assert {(operation, name) for operation, results in passed for name in results} == {
        ("sinkhorn_projection_vjp", "grad_mix_logits"),
        ("adapter_forward", "y"),
        *(("adapter_vjp", f"grad_{name}") for name in ("x", "mix_logits", "gate_logit", "basis")),
    }


@pytest.mark.clause("VEC-1")
def test_headers_name_clauses_that_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in Path(spec.__file__).parent.glob("*.md"))
    clauses = set(re.findall(r"^\*\*([A-Z]+-\d+)\*\*", text, re.MULTILINE))
    for case, _ in independent_reader(FOLDER):
        assert case["clauses"], case["name"]
        assert set(case["clauses"]) <= clauses, case["name"]


@pytest.mark.clause("VEC-6")
def test_they_stay_small():
    assert sum(map(len, FILES.values())) < 1_000_000
    assert len(FILES) <= 80


# -- stored and generated --


@pytest.mark.clause("VEC-6")
def test_stored_is_what_the_reference_computes(fresh):
    assert list(differences(FILES, fresh)) == []
    assert generate() == fresh, "two runs on one machine give other bytes"


def changed(header=None, data=None):
    """All files, with one group's header or data changed; the header's digest follows the data."""
    files = dict(FILES)
    text = json.loads(files[f"{GROUP}.json"])
    if data:
        content = bytearray(files[f"{GROUP}.bin"])
        data(content, text["cases"][0]["arrays"])
        files[f"{GROUP}.bin"] = bytes(content)
        text["data_sha256"] = hashlib.sha256(content).hexdigest()
    if header:
        header(text)
    files[f"{GROUP}.json"] = json.dumps(text).encode()
    return files


def flip(array, byte):
    """Changes one bit of an array's first number; byte 0 holds its last digits."""

    def change(content, arrays):
        content[arrays[array]["offset"] + byte] ^= 1

    return change


@pytest.mark.clause("VEC-6")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed(data=flip("x", 0)), "an input with other bits"),
        (changed(data=flip("grad_basis", 6)), "off by .* allowed"),
        (changed(header=lambda h: h["cases"][0].update(iterations=19)), "iterations is 19, the reference gives 20"),
        (changed(header=lambda h: h["cases"].pop()), "gate 12, gradient' is missing"),
        (changed(header=lambda h: h.update(spec_version="9")), "spec_version is '9'"),
        (
            changed(header=lambda h: h["cases"][0]["arrays"]["grad_basis"]["tolerance"]["float32"].update(absolute=1)),
            "grad_basis: tolerance",
        ),
        ({**FILES, "other.json": b"{}"}, "other.json: the reference does not generate it"),
        ({**FILES, "state.safetensors": b""}, "state.safetensors: other bytes"),
        ({name: data for name, data in FILES.items() if name != "certificates.bin"}, "certificates.bin: missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_is_named(files, message, fresh):
    found = list(differences(files, fresh))
    assert any(re.search(message, line) for line in found), found
    assert len(found) <= 2, found


@pytest.mark.clause("VEC-6")
def test_the_last_bits_of_an_output_may_differ(fresh):
    assert list(differences(changed(data=flip("grad_basis", 0)), fresh)) == []


# -- damage --


@pytest.mark.clause("VEC-6", "ERR-1", "ERR-2")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**FILES, f"{GROUP}.bin": FILES[f"{GROUP}.bin"][:-1]}, "adapter-gates.bin: got .* bytes"),
        ({**FILES, f"{GROUP}.bin": b"\1" + FILES[f"{GROUP}.bin"][1:]}, "adapter-gates.bin: got SHA-256"),
        ({**FILES, f"{GROUP}.json": FILES[f"{GROUP}.json"][:-9]}, "adapter-gates.json: got no JSON"),
        ({**FILES, f"{GROUP}.json": b"[]"}, "adapter-gates.json: got list"),
        (changed(header=lambda h: h.update(format_version=2)), "format_version.: 2"),
        (changed(header=lambda h: h.pop("cases")), "KeyError: 'cases'"),
        (changed(header=lambda h: h.update(cases=3)), "TypeError"),
        (changed(header=lambda h: h["cases"][0]["arrays"]["x"].update(offset=10**9)), "x: got .* bytes at 1000000000"),
        (changed(header=lambda h: h["cases"][0]["arrays"]["x"].update(shape=[7])), r"for shape \[7\]"),
        (changed(header=lambda h: h["cases"][0]["arrays"]["x"].update(shape="no")), "adapter-gates.json: got"),
        (changed(header=lambda h: h["cases"][0]["arrays"]["x"].update(dtype=">f4")), "dtype '>f4'"),
        (changed(header=lambda h: h["cases"][0]["arrays"].update(x=[])), "TypeError"),
        (changed(header=lambda h: h["cases"][0].update(file="gone")), "gone: got no such file"),
        ({name: data for name, data in FILES.items() if name != f"{GROUP}.bin"}, "adapter-gates.bin: got no such"),
        ({}, "index.json: got no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_vector_is_one_clear_error(files, message):
    with pytest.raises(GoldenVectorError, match=message) as caught:
        list(read(files))
    assert isinstance(caught.value, CRMAError)
    assert "allowed:" in str(caught.value)
    assert "Try:" in str(caught.value)


# -- the command --


@pytest.mark.clause("VEC-6")
def test_command_writes_what_it_then_finds_unchanged(tmp_path, capsys, fresh, monkeypatch):
    monkeypatch.setattr(generating, "generate", lambda: fresh)
    folder = str(tmp_path / "new" / "vectors")
    assert main(["--folder", folder]) == 0
    assert main(["--folder", folder, "--check"]) == 0
    assert load_files(Path(folder)) == fresh
    (tmp_path / "new" / "vectors" / "state.safetensors").write_bytes(b"")
    (tmp_path / "new" / "vectors" / "certificates.json").unlink()
    capsys.readouterr()
    assert main(["--folder", folder, "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "certificates.json: missing",
        "state.safetensors: other bytes than the reference gives",
    ]


@pytest.mark.clause("VEC-6", "ERR-2")
def test_command_outside_the_checkout(tmp_path):
    command = ("-m", "conformance.golden_vectors", "--check")
    done = run(tmp_path, *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    done = run(tmp_path, *command, "--folder", tmp_path / "absent")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert done.stderr.count("allowed:") == 1


@pytest.mark.clause("VEC-6")
def test_groups_can_be_read_one_by_one():
    cases = list(read_group(FILES, f"{GROUP}.json"))
    assert {case.group for case in cases} == {GROUP}
    assert {"x", "mix_logits", "gate_logit", "basis"} <= set(cases[-1].of_role("input"))


@pytest.mark.clause("VEC-2")
def test_every_golden_vector_is_tried():
    """No operation of the files is left out by conformance/test_golden_vectors.py."""
    known = {"sinkhorn_projection", "sinkhorn_projection_sums", "sinkhorn_projection_vjp", "adapter_forward"}
    known |= {"adapter_vjp", "adapter_spectrum", "displacement", "state_file"}
    assert {case.about["operation"] for case in read(FILES)} == known
