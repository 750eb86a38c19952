"""Small random models of each family, saved as transformers saves them, for the tests of this folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

#: Of the largest logit. On random batches for the models below, this decoder and transformers are each within 1e-5 of
#: the decoder in float64 (phi4 is the worst, whose sharp attention enlarges rounding; the others stay below 3e-6), so
#: within 2e-5 of each other. ``test_parity`` shows that each switch of a configuration moves a logit by far more.
TOLERANCE = 2e-5

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5],
}
GEMMA2 = {
    "sliding_window": 8,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 1.0,
}
PHI4 = {"tie_word_embeddings": True, "original_max_position_embeddings": 40, "rope_parameters": LONG_ROPE}

#: name -> (model_type, what differs from SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR_ROPE}),
    "llama3": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE, "head_dim": 24}),
    "mistral": ("mistral", {"sliding_window": 8, "head_dim": 32}),
    "gemma2": ("gemma2", GEMMA2),
    "phi3": ("phi3", {"sliding_window": 24}),
    "phi4": ("phi3", PHI4),
}


class Case(NamedTuple):
    """A model of transformers, in float32 with eager attention, and the same weights in the decoder."""

    model: Any
    folder: Path
    params: Any
    config: Any


def build_model(name: str) -> Any:
    """Random weights that are large enough for attention to be sharp and for soft caps to bite."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model_type, changes = FAMILIES[name]
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = 1.5 / weight.shape[-1] ** 0.5
            if "embed" in path:  # Gemma's are multiplied by 8; larger ones would let it repeat the token it saw
                scale = 0.04 if model_type == "gemma2" else 1.0
            weight.copy_(scale * noise if weight.ndim == 2 else weight + 0.3 * noise)
    return model


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A function from a name in FAMILIES to its case; each is built once."""
    from backends.jax.decoder import load_decoder

    cases: dict[str, Case] = {}

    def build(name: str) -> Case:
        if name not in cases:
            model, folder = build_model(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            cases[name] = Case(model, folder, *load_decoder(folder))
        return cases[name]

    return build


@pytest.fixture(params=list(FAMILIES))
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)


@pytest.fixture
def folder(case_of: Callable[[str], Case], tmp_path: Path) -> Path:
    """A copy of llama3, whose head is tied, in one file."""
    return shutil.copytree(case_of("llama3").folder, tmp_path / "model")


@pytest.fixture
def sharded(case_of: Callable[[str], Case], tmp_path: Path) -> Path:
    """The same in several shards, with their index."""
    case_of("llama3").model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> None:
    """Pass the tensors of a file through ``change``, which edits the dictionary."""
    import safetensors.numpy

    tensors = dict(safetensors.numpy.load_file(folder / name))
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / name)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
