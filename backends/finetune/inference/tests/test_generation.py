"""Decoding: a batch says what each prompt says alone, and greedy decoding is the argmax of the logits."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from transformers import AutoTokenizer, GenerationConfig

from backends.finetune.inference.generation import generate, prompt_ids
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.tests.conftest import tiny_base
from backends.finetune.tasks.encoding import encode
from backends.finetune.tasks.task import Example
from reference.errors import ConfigError

PROMPTS = ["say 3:", "a", "tell me something rather longer, will you?", "say 12:", "x y z"]


@pytest.fixture(scope="module")
def registry(modular_run: Path) -> AdapterRegistry:
    return AdapterRegistry.from_run(modular_run)


def test_a_left_padded_batch_says_what_each_prompt_says_alone(registry: AdapterRegistry) -> None:
    alone = [registry.generate(prompt, task="beta", max_new_tokens=12) for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)  # five different answers, so a mix-up shows
    assert registry.generate(PROMPTS, task="beta", max_new_tokens=12) == alone
    assert registry.generate(PROMPTS, task="beta", max_new_tokens=12, batch_size=2) == alone
    assert registry.generate(PROMPTS, task="gamma", max_new_tokens=12) != alone


def test_greedy_decoding_takes_the_largest_logit(registry: AdapterRegistry) -> None:
    tokenizer = registry.tokenizer
    for task in ("alpha", None):
        text = registry.generate(PROMPTS[0], task=task, max_new_tokens=10)
        ids = prompt_ids(tokenizer, PROMPTS[0])
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 10:
                best = int(registry.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                ids.append(best)
                if best == tokenizer.eos_token_id:
                    break
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_it_stops_at_the_end_of_text(registry: AdapterRegistry) -> None:
    """The token that it writes first is made the end of text: then nothing is written."""
    tokenizer, end = registry.tokenizer, registry.tokenizer.eos_token_id
    registry.use("alpha")
    with torch.no_grad():
        logits = registry.model(input_ids=torch.tensor([prompt_ids(tokenizer, PROMPTS[0])]), use_cache=False).logits
    assert registry.generate(PROMPTS[0], task="alpha", max_new_tokens=20) != ""
    try:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(logits[0, -1].argmax()))
        assert registry.generate(PROMPTS[0], task="alpha", max_new_tokens=20) == ""
    finally:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def test_temperature_draws_from_a_generator_of_its_own(registry: AdapterRegistry) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = registry.generate(PROMPTS, task="beta", max_new_tokens=12, temperature=1.5, seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert registry.generate(PROMPTS, task="beta", max_new_tokens=12, temperature=1.5, seed=1) == first
    assert registry.generate(PROMPTS, task="beta", max_new_tokens=12, temperature=1.5, seed=2) != first


SETTINGS = {
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 4, "suppress_tokens": list(range(1, 100)),
    "begin_suppress_tokens": list(range(1, 200)), "top_p": 0.1, "min_p": 0.9, "top_k": 1, "temperature": 0.01,
    "do_sample": True, "guidance_scale": 3.0, "max_time": 1e-4, "return_dict_in_generate": True, "max_length": 4,
    "min_new_tokens": 12, "num_return_sequences": 2, "forced_eos_token_id": 5, "sequence_bias": [[[5], 50.0]],
    "cache_implementation": "static", "use_cache": False, "prompt_lookup_num_tokens": 3, "token_healing": True,
    "stop_strings": ["a"], "bad_words_ids": [[token] for token in range(1, 90)], "penalty_alpha": 0.5,
    "dola_layers": "low", "exponential_decay_length_penalty": [1, 5.0], "unknown": "x",
}  # fmt: skip


def test_settings_that_come_with_the_model_are_not_used(registry: AdapterRegistry) -> None:
    def answers() -> list[list[str]]:
        settings: dict[str, Any] = {"task": "beta", "max_new_tokens": 12, "seed": 3}
        return [registry.generate(PROMPTS, temperature=heat, **settings) for heat in (0.0, 1.0)]

    expected, own = answers(), registry.model.generation_config
    try:
        for name, value in SETTINGS.items():
            stored = registry.model.generation_config = deepcopy(own)
            setattr(stored, name, value)
            assert answers() == expected, name
            assert registry.model.generation_config is stored
            assert getattr(stored, name) == value
    finally:
        registry.model.generation_config = own


def test_settings_in_either_file_of_the_model_are_not_used(tiny_model: Path, tmp_path: Path) -> None:
    """transformers moves old keys of config.json to the settings of generation."""

    def answer(folder: Path) -> list[str]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return generate(tiny_base(folder), tokenizer, PROMPTS, max_new_tokens=12)

    for number, file in enumerate(("config.json", "generation_config.json")):
        folder = Path(shutil.copytree(tiny_model, tmp_path / str(number)))
        content = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
        content |= {"repetition_penalty": 5.0, "num_beams": 3, "max_length": 4, "forced_eos_token_id": 5}
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        assert answer(folder) == answer(tiny_model)


def test_the_base_models_own_ends_count_and_have_to_be_tokens(registry: AdapterRegistry) -> None:
    own = registry.model.generation_config
    registry.use("alpha")
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(registry.tokenizer, PROMPTS[0])])
        first = int(registry.model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
    try:
        registry.model.generation_config = GenerationConfig(eos_token_id=[first, 0])
        assert registry.generate(PROMPTS[0], task="alpha", max_new_tokens=12) == ""
        for wrong in ("x", -1, [0, None], True):
            registry.model.generation_config = deepcopy(own)
            registry.model.generation_config.eos_token_id = wrong
            with pytest.raises(ConfigError, match="eos_token_id of the base model"):
                registry.generate(PROMPTS[0], task="alpha")
    finally:
        registry.model.generation_config = own


@pytest.mark.parametrize("prompt", ["say 3:", "say 3: ", "", "a\n"])
def test_what_generate_feeds_is_what_training_begins_with(
    registry: AdapterRegistry, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    original = registry.model.generate

    def spy(ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        fed.extend(ids.tolist())
        return original(ids, **settings)

    monkeypatch.setattr(registry.model, "generate", spy)
    tokenizer = registry.tokenizer
    tokenizer.bos_token = "<end>"  # so that an empty prompt can be asked
    try:
        registry.generate(prompt, task="beta", max_new_tokens=1)
        (example,) = encode([Example(prompt, " aaa")], tokenizer, 64, task="t")
    finally:
        tokenizer.bos_token = None
    assert fed == [list(example.ids[: example.answer_start])]


def test_refusals(registry: AdapterRegistry) -> None:
    with pytest.raises(ConfigError, match="empty"):
        registry.generate("", task="alpha")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        registry.generate("a", task="alpha", max_new_tokens=0)
    with pytest.raises(ConfigError, match="temperature"):
        registry.generate("a", task="alpha", temperature=-1.0)
    with pytest.raises(ConfigError, match="2048 tokens in all"):
        registry.generate("a", task="alpha", max_new_tokens=2048)
    with pytest.raises(ConfigError, match="'delta'"):
        registry.generate("a", task="delta")
