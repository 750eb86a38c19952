"""Decoding: a batch says what each prompt says alone, and greedy decoding is the argmax of the logits."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from backends.finetune.inference.generation import prompt_ids
from backends.finetune.inference.registry import AdapterRegistry
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


def test_prompts_are_encoded_as_in_training(registry: AdapterRegistry) -> None:
    from backends.finetune.encoding import encode
    from backends.finetune.tasks import Example

    example = encode([Example("say 3:", " aaa")], registry.tokenizer, 64, task="t")[0]
    assert prompt_ids(registry.tokenizer, "say 3:") == list(example.ids[: example.answer_start])


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
