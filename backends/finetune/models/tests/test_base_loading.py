"""A base model is loaded whole and alone or not at all, in PyTorch and in JAX, and what is wrong is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
import safetensors.torch

from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.torch.model import load_base
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.folder import check_model_folder, load_tokenizer
from backends.finetune.models.load_errors import load_errors
from backends.finetune.models.marker import MARKER
from backends.finetune.models.random_weights import build_random
from backends.finetune.models.resolve import resolve_model
from backends.finetune.models.weights import load_weights
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.job import Job
from reference.errors import CRMAError, ModelError, OutOfMemoryError, ProtocolError

Tensors = dict[str, Any]
CPU = torch.device("cpu")
NORM, HEAD, KEYS = "model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.k_proj.weight"


def protocol(**fields: Any) -> Protocol:
    return Protocol(name="made up", description="", tasks=["A"], train=1, holdout=1, max_tokens=32).model_copy(
        update=fields
    )


def by_torch(folder: Path, **fields: Any) -> None:
    load_base(folder, protocol(**fields), CPU)
    load_tokenizer(folder)


def by_jax(folder: Path, **fields: Any) -> None:
    pytest.importorskip("jax")
    job = Job(folder, protocol(**fields), parse_condition("frozen"), 0)
    engine_factory("jax-cpu")[0](job)
    load_tokenizer(folder)


@pytest.fixture(params=[by_torch, by_jax])
def load(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder: Path, change: Callable[[Tensors], Any], name: str = "model.safetensors") -> None:
    tensors = {key: value.clone() for key, value in safetensors.torch.load_file(folder / name).items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / name, {"format": "pt"})


def renamed(tensors: Tensors) -> None:
    tensors["model.norm2.weight"] = tensors.pop(NORM)


def another_model(tensors: Tensors) -> None:
    """As a checkpoint of a model that sees and reads has them."""
    for name in list(tensors):
        tensors[f"language_model.{name}"] = tensors.pop(name)
    tensors["vision_tower.weight"] = torch.ones(3)


def without_prefix(tensors: Tensors) -> None:
    """As ``LlamaModel`` saves them, without a head."""
    tensors.pop(HEAD)
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def put(name: str, value: Any) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: value})


def spoil(name: str, value: float) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].view(-1)[5:6].fill_(value)


WEIGHTS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda tensors: tensors.pop(HEAD), HEAD),
    "renamed": (renamed, NORM),
    "unexpected": (put("model.layers.0.extra.weight", torch.ones(2)), "extra.weight"),
    "of another model": (another_model, "embed_tokens.weight"),
    "without a head and prefix": (without_prefix, "weight"),
    "longer": (put(NORM, torch.ones(32)), NORM),
    "shorter": (put(NORM, torch.ones(8)), NORM),
    "transposed": (lambda tensors: put(KEYS, tensors[KEYS].T.contiguous())(tensors), KEYS),
    "of whole numbers": (put(NORM, torch.ones(16, dtype=torch.int8)), f"{NORM}: got dtype I8"),
    "in 8 bits": (put(NORM, torch.ones(16).to(torch.float8_e4m3fn)), f"{NORM}: got dtype F8_E4M3"),
    "complex": (put(NORM, torch.ones(16, dtype=torch.complex64)), f"{NORM}: got dtype C64"),
    "NaN": (spoil(KEYS, float("nan")), KEYS),
    "infinite": (spoil(HEAD, float("-inf")), HEAD),
}


@pytest.mark.clause("CL-10")
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_not_the_models_are_refused_by_name(kind, folder, load):
    change, named = WEIGHTS[kind]
    rewrite(folder, change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_value_that_the_precision_does_not_hold_is_refused(precision, folder, load):
    rewrite(folder, spoil(HEAD, 3.4028e38))  # the largest of bfloat16 is 3.3895e38
    if precision == "float32":
        load(folder, precision=precision)
        return
    with pytest.raises(ModelError, match=r"lm_head\.weight.*bfloat16"):
        load(folder, precision=precision)


def test_frequencies_that_old_files_hold_are_no_fault(folder, load):
    rewrite(folder, put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    load(folder)


def test_old_masks_of_gpt2_and_tensors_without_the_prefix_are_no_fault(folder, tmp_path):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 257, "n_positions": 40}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids)).eval()
    model.save_pretrained(folder)
    rewrite(folder, put("transformer.h.0.attn.bias", torch.ones(1, 1, 40, 40, dtype=torch.bool)))
    rewrite(folder, lambda tensors: [put(name[12:], tensors.pop(name))(tensors) for name in list(tensors)])
    again = load_weights(folder, torch.float32, CPU)
    values = dict(again.named_parameters())
    assert all(torch.equal(values[name], value) for name, value in model.named_parameters())
    with pytest.raises(ProtocolError, match=r"max_tokens: got 41; allowed: at most 40 tokens"):
        load_base(folder, protocol(max_tokens=41), CPU)


def test_a_tied_head_is_the_embedding_or_refused(folder, load):
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load(folder)  # whose head has values of its own
    rewrite(folder, lambda tensors: tensors.pop(HEAD))
    load(folder)
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=HEAD):
        load(folder)


@pytest.fixture
def shards(folder: Path) -> list[Path]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_tensor_in_two_shards_is_refused(folder, shards, load):
    load(folder)
    name, value = next(iter(safetensors.torch.load_file(shards[0]).items()))
    rewrite(folder, put(name, value + 1), shards[1].name)
    with pytest.raises(ModelError, match=name) as caught:
        load(folder)
    assert shards[0].name in str(caught.value)


def test_a_tensor_that_the_index_does_not_name_is_no_secret(folder, shards, load):
    rewrite(folder, put("model.unknown", torch.ones(2)), shards[1].name)
    with pytest.raises(ModelError, match=r"model\.unknown"):
        load(folder)


def test_whole_weights_beside_shards_are_two_answers(folder, shards, load):
    shutil.copy(shards[0], folder / "model.safetensors")
    with pytest.raises(ModelError, match="two answers"):
        load(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.clause("CL-10")
def test_an_adapter_in_the_folder_of_a_base_model_is_refused(name, folder, load):
    (folder / name).write_text("{}")
    for loading in (load, load_tokenizer, lambda path: resolve_model(str(path))):
        with pytest.raises(ModelError, match="a base model by itself"):
            loading(folder)


@pytest.mark.clause("CL-10")
def test_a_tokenizer_that_knows_more_than_the_model_is_refused(folder, load):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'<new>' has the id 257, and 258 tokens in all.* 257 rows"):
        load(folder)


def test_a_token_that_only_the_template_names_is_refused(folder):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 999)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match="token 999 in a text"):
        load_tokenizer(folder)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
def test_a_special_token_beyond_the_vocabulary_is_refused(field, folder, load):
    edit(folder, **{field: 257})
    with pytest.raises(ModelError, match=f"{field}: got 257; allowed: an id below 257"):
        load(folder)


@pytest.mark.clause("CL-10")
def test_texts_longer_than_the_positions_are_refused_before_anything_starts(folder, load, crma, tmp_path, tiny_tasks):
    edit(folder, max_position_embeddings=31)
    with pytest.raises(ProtocolError, match="max_tokens: got 32; allowed: at most 31 tokens"):
        load(folder)
    load(folder, max_tokens=31)
    from backends.finetune.conftest import tiny_protocol

    written, out = str(tiny_protocol(tmp_path, folder)), tmp_path / "run"
    for command in (["plan", written], ["finetune", written, "--out", str(out), "--task", tiny_tasks[0]]):
        code, _, error = crma(command)
        assert (code, "max_tokens: got 48; allowed: at most 31" in error) == (2, True), error
    assert not out.exists()


BROKEN: dict[str, dict[str, Any]] = {
    "a type that nobody knows, and code for it": {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}},
    "types": {"model_type": ["llama"]},
    "a rotary embedding that nobody knows": {"rope_parameters": {"rope_type": "own"}},
    "a rotary embedding in words": {"rope_parameters": "long"},
    "an activation that nobody knows": {"hidden_act": "own"},
    "ten million layers": {"num_hidden_layers": 10**7},
    "half a layer": {"num_hidden_layers": 0.5},
    "ten million layers of text": {"text_config": {"num_hidden_layers": 10**7}},
    "absurd sizes": {"hidden_size": 10**9, "intermediate_size": 10**9},
    "sizes beyond any machine": {"hidden_size": 2**62},
    "an absurd vocabulary": {"vocab_size": 10**12},
    "an absurd head": {"head_dim": 10**9},
    "positions in words": {"max_position_embeddings": "many"},
    "weights in 4 bits by GPTQ": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "weights in 8 bits": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "weights in floats of 8 bits": {"quantization_config": {"quant_method": "fp8"}},
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.clause("CL-10")
def test_a_broken_configuration_ends_in_one_error(kind, folder, load):
    (folder / "code.py").write_text("raise SystemExit('code of the folder was run')")
    edit(folder, **BROKEN[kind])
    with pytest.raises(CRMAError) as caught:
        load(folder)
    assert isinstance(caught.value, ModelError), caught.value


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "anything.json"])
def test_a_pipe_or_a_device_is_refused_at_once(name, folder, load):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=f"{name}, which is no file"):
        load(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=f"{name}, which is no file"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{}", "[]", "", "{", '{"a": ' * 5000, "\udcff"])
def test_a_damaged_file_of_the_folder_is_one_error(name, text, folder, load):
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    if text == "{}" and name in ("generation_config.json", "tokenizer_config.json"):
        return  # which say nothing, and need not
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("can't start new thread"), ModelError, "ulimit -u"),
        (OSError(24, "Too many open files"), ModelError, "ulimit -n"),
        (MemoryError(), OutOfMemoryError, "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "bfloat16"),
        (ImportError("No module named 'sentencepiece'"), ModelError, "install the package"),
        (Exception("data did not match any variant"), ModelError, "save or download"),
        (RecursionError("maximum recursion depth exceeded"), ModelError, "RecursionError"),
    ],
)
def test_what_a_library_raises_is_said_as_what_it_was(error, kind, words, tmp_path):
    with pytest.raises(kind) as caught, load_errors(tmp_path):
        raise error
    assert words in str(caught.value)
    assert ("download" in caught.value.remedy) == (words == "save or download" or isinstance(error, RecursionError))


def test_weights_that_are_drawn_are_held_against_the_memory(folder):
    (folder / "model.safetensors").unlink()
    (folder / MARKER).write_text('{"seed": 0}')
    build_random(folder, torch.float32, "cpu")
    edit(folder, num_hidden_layers=1001)
    with pytest.raises(ModelError, match="num_hidden_layers"):
        check_model_folder(folder)
    edit(folder, num_hidden_layers=2, hidden_size=10**7, num_attention_heads=1, intermediate_size=10**7)
    with pytest.raises(OutOfMemoryError, match="GiB of the device"):
        build_random(folder, torch.float32, "cpu")
    with pytest.raises(ProtocolError, match="random weights"):
        check_fits(folder, protocol(quantization="4bit"))


def test_a_loaded_model_does_not_change_with_its_file(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    model = load_weights(folder, torch.float32, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(bytes((folder / "model.safetensors").stat().st_size - 4096))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
