"""What a base model is known by: all that decides its results, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("peft")

from backends.finetune.models import weight_digest
from backends.finetune.models.fingerprint import model_fingerprint

Edit = Callable[[Path], object]


def flipped(name: str) -> Edit:
    def edit(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1  # in the middle, which a look at both ends would miss
        (folder / name).write_bytes(data)

    return edit


def written(name: str, text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return edit


def config(**fields: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_digest, "_LARGE", 0)  # every digest goes through the cache
    return tmp_path / "cache" / "digests"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("part", "edit"),
    [
        ("weights", flipped("model.safetensors")),
        ("config", config(rms_norm_eps=1e-3)),
        ("tokenizer", flipped("tokenizer.json")),
        ("tokenizer", written("tokenizer_config.json", "{}")),
        ("tokenizer", written("chat_template.jinja", "{{ messages }}")),
        ("tokenizer", written("additional_chat_templates/rag.jinja", "{{ documents }}")),
        ("tokenizer", written("special_tokens_map.json", '{"eos_token": "a"}')),
        ("tokenizer", written("added_tokens.json", '{"b": 1}')),
        ("tokenizer", written("tokenizer.model", "other")),
    ],
)
def test_what_decides_a_result_changes_its_part_alone(model: Path, part: str, edit: Edit) -> None:
    before = model_fingerprint(model)
    edit(model)
    after = model_fingerprint(model)
    assert {name for name in before if before[name] != after[name]} == {part}


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "optimizer.safetensors"),
        written("README.md", "text"),
        written("generation_config.json", '{"top_p": 0.5, "eos_token_id": 0}'),
        config(transformers_version="9.9", _name_or_path="elsewhere"),
    ],
)
def test_what_decides_nothing_changes_nothing(tiny_model: Path, model: Path, edit: Edit) -> None:
    edit(model)
    assert model_fingerprint(model) == model_fingerprint(tiny_model)  # wherever it lies


def test_a_damaged_cache_does_not_matter(model: Path, cache: Path) -> None:
    before = model_fingerprint(model)
    entries = list(cache.iterdir())
    assert entries
    for damage in (b"", b"0" * 129, os.urandom(200)):
        for entry in entries:
            entry.write_bytes(damage)
        assert model_fingerprint(model) == before
    shutil.rmtree(cache)
    cache.write_text("in the way")
    assert model_fingerprint(model) == before


def test_a_cached_digest_is_of_the_file_as_it_is(model: Path) -> None:
    before, path = model_fingerprint(model), model / "model.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flipped("model.safetensors")(model)
    os.utime(path, ns=times)  # as somebody would who hides the change
    assert model_fingerprint(model)["weights"] != before["weights"]
