"""The adapter state file of a live model: what brings back every bit, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

import safetensors.numpy

from backends.architecture import architecture_digest
from backends.state_file import KEYS, decode_state, encode_state
from backends.torch import CRMABackbone, attach_crma, load_state
from backends.torch.conftest import FAMILIES, LLAMA3_ROPE, disturb, same_state, tiny_config, tiny_model
from reference import AdapterConfig
from reference.errors import StateFileError

#: of every family's small configuration, the same in each release of transformers: or old files would be refused
DIGESTS = {
    "llama": "40bb01a8915d7eeca07546a15a504f170cc92653072b6fb71baa25054c7e80d7",
    "llama3": "313660aa255bee4b0b32eb1e436eff9ad027b61dfdbca72cd100f7c251860523",
    "mistral": "83243d45f0c88e3666998b8a9c640ad0826480a422946abccbed5da2fdbb1e11",
    "gemma": "6c8b8d1b941e94817a1c4730136b751a40f0bba72a23ddf7eecca46b2be2c2c0",
    "gemma2": "14c1a06d9b2f1420b28b3c836a77a77fc715104a5450dd6289d73447278ed32b",
    "phi3": "6f14ef160101db1dcdaf844f18a34a3646e637c5ac79c6a202a4bc5ae544f65d",
    "qwen2": "03f45b8d2dd46ea8cecddad78d44c446ff8fe7305421e1f38464fc619fb63b9c",
    "qwen3": "af7da40f48cff926aa097a271e4ca49a26cee7b474132c18cbd758e8af62858d",
    "olmo2": "13e4016f7b21d3609b6cf61dcf1534f21cb930ea8bf2596a35ed3c439123b6f3",
    "gpt_neox": "4003cd7729c3fbe973a96c5d460d72f94237cb881cd10af96e96518f0ffcf9bf",
    "gpt2": "b5fa80e37003347aeb08056ae95eb4056e85af8b1998e81af4c4f9474cde2df1",
    "falcon": "a322b08afbeb94fd853f28b54c6ed1507b37b65fe21ad8a4b533f192371b7dce",
    "stablelm": "d5b5c720bbd67a76c336132d85eec95ff34ffc511cdf5fa7d1e6343fd8a4444b",
    "mixtral": "adaf96dee3c1507452144fd9b946f34ab717e6b88c396e6e8e038dcdeac2c829",
}


def attached() -> CRMABackbone:
    return disturb(attach_crma(tiny_model("llama")), 1.0)


def small_file(base_model: str = "a model") -> bytes:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 2, 2)), rng.normal(size=2), rng.normal(size=(2, 2, 1, 4))
    return encode_state(*arrays, AdapterConfig(4, 2, 1, 20), base_model, "0" * 64)


def rewritten(data: bytes, **changed: str | None) -> bytes:
    """The same arrays with other metadata; None leaves a key out."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] | changed
    return safetensors.numpy.save(safetensors.numpy.load(data), {k: v for k, v in header.items() if v is not None})


@pytest.mark.clause("STATE-1", "STATE-2")
def test_the_state_file_brings_back_every_bit(tmp_path: Path) -> None:
    file = tmp_path / "crma.safetensors"
    backbone, other = attached(), attach_crma(tiny_model("llama"), seed=9)
    backbone.save(file)
    other.load(file)
    assert same_state(backbone, other)
    header = json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"]
    assert header["format"] == "crma"
    assert json.loads(header["config"])["layers"] == 2
    assert header["base_model_sha256"] == backbone.base_model_sha256
    assert list(header) == sorted(header)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    written = file.read_bytes()
    other.save(file)
    assert file.read_bytes() == written


@pytest.mark.clause("STATE-4")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "InvalidHeader|HeaderTooSmall|Error"),
        (lambda data: data[: len(data) // 2], "Error"),
        (lambda data: data.replace(b'"crma"', b'"lora"'), "format 'lora'"),
        (lambda data: data.replace(b'"spec_version":"0', b'"spec_version":"7'), "spec_version 7"),
        (lambda data: data.replace(b'\\"layers\\": 2', b'\\"layers\\": 4'), "expected float32"),
        (lambda data: data.replace(b'\\"streams\\"', b'\\"strands\\"'), "config"),
        (lambda data: data.replace(b'"gate_logits"', b'"gate_logitz"'), "tensors"),
        (lambda data: data[:-4] + np.float32(np.nan).tobytes(), "NaN"),
        (lambda data: data[:-4] + np.float32(0.5).tobytes(), "content_sha256"),
        (lambda data: data.replace(b'\\"iterations\\": 20', b'\\"iterations\\": 21'), "content_sha256"),
        (lambda data: (2**63).to_bytes(8, "little") + data[8:], "Error"),
    ],
)
def test_a_damaged_state_file_is_refused_and_changes_nothing(tmp_path: Path, damage: Any, message: str) -> None:
    file = tmp_path / "crma.safetensors"
    backbone = attached()
    backbone.save(file)
    data = file.read_bytes()
    assert damage(data) != data
    file.write_bytes(damage(data))
    with torch.no_grad():
        backbone.parameter_groups()["gate"][0].add_(1.0)
    before = backbone.state()
    with pytest.raises(StateFileError, match=message):
        backbone.load(file)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.state(), strict=True))


@pytest.mark.clause("STATE-4", "STATE-6")
def test_no_flipped_bit_changes_what_is_read() -> None:
    """Every single bit of a file: refused, or of no effect on the adapter (a description, a space, an unknown key)."""
    data, refused = small_file(), 0
    good = decode_state(data)
    body = 8 + int.from_bytes(data[:8], "little")
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            found = decode_state(bytes(flipped))
        except StateFileError:
            refused += 1
            continue
        assert position // 8 < body, "a bit of an array"
        assert found.config == good.config
        for key in KEYS:
            assert np.array_equal(getattr(found, key), getattr(good, key))
    assert refused > 8 * (len(data) - body) + 4 * body


@pytest.mark.clause("STATE-2", "STATE-6")
def test_files_without_checksums_still_load(tmp_path: Path) -> None:
    old = tmp_path / "old.safetensors"
    backbone = attached()
    backbone.save(old)
    old.write_bytes(rewritten(old.read_bytes(), content_sha256=None, base_model_sha256=None, spec_version="0.1"))
    other = attach_crma(tiny_model("llama"), seed=9)
    other.load(old)
    assert all(torch.equal(a, b) for a, b in zip(backbone.state(), other.state(), strict=True))
    assert load_state(old).base_model_sha256 == ""
    old.write_bytes(rewritten(old.read_bytes(), base_model=None, author="somebody"))
    other.load(old)


@pytest.mark.clause("STATE-4")
def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "crma.safetensors"
    attached().save(file)
    others = {
        "hidden_size": tiny_model("llama", hidden_size=64),
        "num_hidden_layers=2": tiny_model("llama", num_hidden_layers=3),
        "mistral": tiny_model("mistral"),
    }
    for words, model in others.items():
        with pytest.raises(StateFileError, match=words):
            attach_crma(model).load(file)
    backbone = attach_crma(tiny_model("llama", rope_parameters=LLAMA3_ROPE))  # the same in words
    with pytest.raises(StateFileError, match="base_model_sha256") as caught:
        backbone.load(file)
    assert backbone.base_model_sha256 in caught.value.allowed
    with pytest.raises(StateFileError, match="No such file"):
        load_state(tmp_path / "none.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checksum_of_a_configuration_is_the_same_in_every_release(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = tiny_config(family)
    assert architecture_digest(config) == DIGESTS[family]
    config.save_pretrained(tmp_path)
    assert architecture_digest(AutoConfig.from_pretrained(tmp_path)) == DIGESTS[family]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_key_value_heads": 4},
        {"rms_norm_eps": 1e-4},
        {"hidden_act": "relu"},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_the_checksum_tells_configurations_apart(changed: dict[str, Any]) -> None:
    assert architecture_digest(tiny_config("llama", **changed)) != DIGESTS["llama"]


def test_a_configuration_in_the_form_of_older_releases_has_the_same_checksum() -> None:
    import transformers

    make: Any = transformers.LlamaConfig
    new = tiny_config("llama", rope_parameters=LLAMA3_ROPE).to_dict()
    rope = dict(new.pop("rope_parameters"))
    old = make(**new, rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    digests = [architecture_digest(config) for config in (old, make(**new, rope_parameters=LLAMA3_ROPE))]
    assert digests[0] == digests[1] != DIGESTS["llama"]
