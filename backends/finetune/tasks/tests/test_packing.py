"""A packed batch is the same examples: same answer losses, same gradients, in every family and kind of attention."""

from typing import Any

import numpy as np
import pytest

from backends.finetune.tasks.encoding import IGNORED, EncodedExample, collate
from backends.finetune.tasks.packing import check_packing, collate_packed, model_arguments, pack
from reference.errors import ConfigError, ModelError

SEED = 20


def random_examples(rng: np.random.Generator, lengths: list[int]) -> list[EncodedExample]:
    return [
        EncodedExample(tuple(rng.integers(3, 60, length).tolist()), int(rng.integers(1, length))) for length in lengths
    ]


def fewest_rows(lengths: list[int], max_tokens: int) -> int:
    """By trying everything."""

    def place(index: int, rows: list[int]) -> int:
        if index == len(lengths):
            return len(rows)
        found = place(index + 1, [*rows, lengths[index]])
        for row, used in enumerate(rows):
            if used + lengths[index] <= max_tokens:
                found = min(found, place(index + 1, [*rows[:row], used + lengths[index], *rows[row + 1 :]]))
        return found

    return place(0, [])


@pytest.mark.parametrize("seed", range(20))
def test_every_example_is_in_one_row_and_the_rows_are_few(seed):
    rng = np.random.default_rng([SEED, seed])
    lengths = rng.integers(2, 13, 7).tolist()
    examples = random_examples(rng, lengths)
    rows = pack(examples, 16)
    assert sorted(index for row in rows for index in row) == list(range(7))
    assert all(sum(lengths[index] for index in row) <= 16 for row in rows)
    assert len(rows) <= 11 / 9 * fewest_rows(lengths, 16) + 6 / 9
    assert rows == pack(examples, 16)


def test_first_fit_decreasing_by_hand():
    lengths = [3, 9, 4, 6, 7, 3]
    examples = [EncodedExample(tuple(range(length)), 1) for length in lengths]
    assert pack(examples, 10) == [[1], [4, 0], [3, 2], [5]]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ConfigError, match="example 2 has 9 tokens"):
        pack([EncodedExample((1, 2), 1), EncodedExample(tuple(range(9)), 1)], 8)


def test_positions_restart_and_no_label_crosses_a_border():
    first, second, third = EncodedExample((5, 6, 7), 1), EncodedExample((8, 9), 0), EncodedExample((4, 3, 2, 1), 2)
    batch = collate_packed([[first, second], [third, first]], pad_id=50)
    no = IGNORED
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 50, 50], [4, 3, 2, 1, 5, 6, 7]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 0, 1, 2]]
    assert batch.labels.tolist() == [[no, 6, 7, no, 9, no, no], [no, no, 2, 1, no, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]
    assert batch.tokens == 12


# With models ---------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from backends.torch import attach_crma
from backends.torch.conftest import activate, tiny_model
from reference.adapter import AdapterConfig

FAMILIES = ("llama", "mistral", "gemma2", "phi3")
#: Gemma-2's capped scores are beyond the fused attention, and some releases of transformers refuse it.
KINDS = [(family, kind) for family in FAMILIES for kind in ("eager", "sdpa") if (family, kind) != ("gemma2", "sdpa")]
#: Of the loss and of each gradient's largest value, for another order of summation. Models are in float64, since
#: examples may nearly cancel in a gradient; the worst seen is 6e-6, with a softmax that transformers takes in float32.
ROUNDING = 2e-5


def prepared(family: str, attention: str, crma: bool) -> tuple[Any, dict[str, Any]]:
    """A model, and all it has to learn: windows of 8 tokens in Mistral, and in every other layer of Gemma-2."""
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    parameters = dict(model.named_parameters())
    if crma:
        backbone = activate(attach_crma(model, AdapterConfig(32, 2, 3)))
        parameters |= dict(backbone.named_parameters(prefix="crma"))
    model.double()
    return model, parameters


def summed_loss(model: Any, labels: Any, **arguments: Any) -> Any:
    logits = model(**arguments).logits[:, :-1].flatten(0, 1)
    wanted = torch.from_numpy(labels)[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")


def loss_and_gradients(loss: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {name: gradient for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return {"loss": loss.detach()} | found


def worst(actual: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference, in units of the largest value of its tensor."""
    assert actual.keys() == expected.keys()
    return max(float((actual[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in expected)


@pytest.mark.parametrize("crma", [False, True], ids=["bare", "crma"])
@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_packed_losses_and_gradients_are_those_of_the_examples_alone(family, attention, crma):
    model, parameters = prepared(family, attention, crma)
    # Rows of up to 80 tokens, beyond the 64 at which Phi-3 changes its rotary embedding; no example is as long.
    examples = random_examples(np.random.default_rng(SEED), [31, 19, 22, 3, 2, 27, 12, 9, 14])
    rows = [[examples[index] for index in row] for row in pack(examples, 80)]
    assert any(len(row) > 2 for row in rows)
    packed = collate_packed(rows, pad_id=0)
    assert (packed.input_ids == 0).any()
    assert packed.input_ids.shape[1] > 64

    single = [collate([example], 0) for example in examples]
    alone = sum(summed_loss(model, one.labels, input_ids=torch.from_numpy(one.input_ids)) for one in single)
    expected = loss_and_gradients(alone, parameters)
    arguments = model_arguments(packed)
    actual = loss_and_gradients(summed_loss(model, packed.labels, **arguments), parameters)
    assert worst(actual, expected) <= ROUNDING

    ones = torch.ones_like(arguments["input_ids"])
    for wrong in ({"attention_mask": ones}, {"use_cache": True}, {"position_ids": None}):
        leaking = loss_and_gradients(summed_loss(model, packed.labels, **(arguments | wrong)), parameters)
        assert worst(leaking, expected) > 1000 * ROUNDING, f"{wrong} was to be wrong"


@pytest.mark.parametrize(
    ("family", "attention"),
    [*KINDS, *((name, "sdpa") for name in ("llama3", "gemma", "qwen2", "qwen3", "olmo2", "gpt_neox", "gpt2"))],
)
def test_models_that_keep_packed_examples_apart_pass_the_check(family, attention):
    check_packing(prepared(family, attention, crma=True)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_to_sixteen_bits_is_no_leak(family):
    check_packing(prepared(family, "eager", crma=True)[0].bfloat16())


@pytest.mark.parametrize("changed", [{"attention_mask": "ones"}, {"use_cache": True}, {"position_ids": None}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_which_examples_see_each_other_is_refused(family, changed, monkeypatch):
    model = prepared(family, "eager", crma=False)[0]
    forward = model.forward

    def leaking(**arguments: Any) -> Any:
        ones = {key: torch.ones_like(arguments["input_ids"]) if value == "ones" else value for key, value in given}
        return forward(**(arguments | ones))

    given = list(changed.items())
    monkeypatch.setattr(model, "forward", leaking)
    with pytest.raises(ModelError, match="see each other"):
        check_packing(model)
