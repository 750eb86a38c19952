"""The output head on the answers alone, and frozen weights in 16 bits: the same logits."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.conftest import tiny_protocol
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.torch.answer_head import answer_logits
from backends.finetune.engines.torch.model import round_frozen_linears
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks import encoding
from backends.finetune.tasks.encoding import Batch, EncodedExample, collate
from backends.finetune.tasks.job import Job
from backends.torch.conftest import IDS, tiny_model
from reference.errors import ModelError

ROWS, COLUMNS = torch.tensor([0, 0, 1]), torch.tensor([2, 7, 9])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "phi3"])
def test_the_logits_are_those_of_the_whole_model(family: str) -> None:
    model = tiny_model(family)
    whole = model(input_ids=IDS).logits
    logits = answer_logits(model, {"input_ids": IDS}, ROWS, COLUMNS)
    torch.testing.assert_close(logits, whole[ROWS, COLUMNS], rtol=1e-5, atol=1e-6)
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    weight = model.get_input_embeddings().weight
    expected, found = (torch.autograd.grad(out, weight, cotangent)[0] for out in (whole[ROWS, COLUMNS], logits))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(model(input_ids=IDS).logits, whole)  # nothing stays on the head


def test_a_model_without_a_head_that_can_be_found_computes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    whole = model(input_ids=IDS).logits[ROWS, COLUMNS]
    for head in (None, torch.nn.Linear(1, 1)):  # one that is not called
        monkeypatch.setattr(model, "get_output_embeddings", lambda head=head: head)
        assert torch.equal(answer_logits(model, {"input_ids": IDS}, ROWS, COLUMNS), whole)


def test_a_head_that_is_given_other_positions_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="the output head of LlamaForCausalLM"):
        answer_logits(model, {"input_ids": IDS, "logits_to_keep": 3}, ROWS, COLUMNS)
    assert model(input_ids=IDS).logits.shape[:2] == IDS.shape


def test_logits_that_are_not_of_the_head_are_refused() -> None:
    model = tiny_model("llama")
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, output: output[:, :2])
    with pytest.raises(ModelError, match=r"got logits of shape \(1, 2"):
        answer_logits(model, {"input_ids": IDS}, ROWS, COLUMNS)


def test_a_large_vocabulary_is_scored_in_parts_with_the_same_losses(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine, _ = engine_factory("torch-cpu")
    protocol = load_protocol(str(tiny_protocol(tmp_path, tiny_model)))
    engine: Any = make_engine(Job(tiny_model, protocol, parse_condition("frozen"), 0))
    engine.begin_phase(0, 1)
    batch = collate([EncodedExample(tuple(range(5, 12 + n)), 2 + n % 3) for n in range(11)], 0)
    whole, computed, logits_of = engine.scores([batch, batch]), list[int](), engine._answer_logits

    def counted(part: Batch) -> Any:
        computed.append(len(part.labels))
        return logits_of(part)

    monkeypatch.setattr(engine, "_answer_logits", counted)
    vocabulary = engine.model.config.vocab_size
    for at_once in (1, 5):
        computed.clear()
        monkeypatch.setattr(encoding, "LOGITS_TOGETHER", at_once * 15 * vocabulary)
        parts = engine.scores([batch, batch])
        rows = max(at_once, protocol.batch_size)
        assert computed == 2 * [*[rows] * (11 // rows), 11 % rows]
        assert [(score.tokens, score.is_greedy) for score in parts] == [(s.tokens, s.is_greedy) for s in whole]
        assert [score.loss for score in parts] == pytest.approx([score.loss for score in whole], rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_frozen_linear_layers_in_bfloat16_give_the_bits_of_autocast(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    trained: Any = next(module for module in model.modules() if type(module) is torch.nn.Linear)
    trained.requires_grad_(True)

    def logits() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=IDS).logits

    before = logits()
    round_frozen_linears(model)
    assert torch.equal(logits(), before)
    assert trained.weight.dtype == model.get_input_embeddings().weight.dtype == torch.float32
    assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("packing", [False, True])
def test_an_engine_rounds_what_is_frozen_alone(packing: bool, tiny_model: Path, tmp_path: Path) -> None:
    protocol = load_protocol(str(tiny_protocol(tmp_path, tiny_model)), precision="mixed", packing=packing)
    engine: Any = engine_factory("torch-cpu")[0](Job(tiny_model, protocol, parse_condition("modular"), 0))
    rounded = {name for name, value in engine.model.named_parameters() if value.dtype == torch.bfloat16}
    assert rounded
    assert not rounded & {name for name, value in engine.model.named_parameters() if value.requires_grad}
    engine.begin_phase(0, 1)
    batch = collate([EncodedExample((3, 5, 7, 9), 1)], 0)
    assert engine.step([batch], 0).loss > engine.scores([batch])[0].loss / 3 > 0
