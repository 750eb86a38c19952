"""From examples to batches: which tokens are learned, and that the order is a function of its arguments alone."""

from typing import Any

import numpy as np
import pytest

from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.runs.records import TextRecord
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import IGNORED, collate, encode, evaluation_order, training_order
from backends.finetune.tasks.task import Example, Task
from backends.finetune.tasks.texts import count_texts, encode_tasks, said_of
from reference.errors import TaskDataError


class Letters:
    """A tokenizer of letters; ``begins``: whether it puts its beginning-of-text token before every text."""

    def __init__(self, bos: Any = 1, eos: int | None = 2, begins: bool = False) -> None:
        self.bos_token_id, self.eos_token_id, self.begins = bos, eos, begins
        self.pad_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [self.bos_token_id, *ids] if self.begins and add_special_tokens else ids}


def learned(tokenizer, example):
    """The ids, and the ids that count in the loss."""
    (encoded,) = encode([example], tokenizer, 20, task="x")
    labels = collate([encoded], pad_id=0).labels[0]
    return list(encoded.ids), [token for token in labels.tolist() if token != IGNORED]


@pytest.mark.clause("CL-1")
def test_only_the_response_and_the_end_are_learned():
    ids, counted = learned(Letters(), Example("ab", "cd"))
    assert ids == [*b"abcd", 2]
    assert counted == [*b"cd", 2]


def test_a_tokenizer_that_begins_every_text_begins_the_prompt():
    ids, counted = learned(Letters(begins=True), Example("ab", "cd"))
    assert ids == [1, *b"abcd", 2]
    assert counted == [*b"cd", 2]


def test_plain_text_is_learned_whole_if_something_stands_before_it():
    assert learned(Letters(), Example("", "cd")) == ([1, *b"cd", 2], [*b"cd", 2])
    assert learned(Letters(bos=None), Example("", "cd")) == ([*b"cd", 2], [*b"d", 2])


def test_a_tokenizer_without_an_end_token_adds_none():
    assert learned(Letters(eos=None), Example("ab", "cd")) == ([*b"abcd"], [*b"cd"])


def test_a_long_response_is_cut_and_a_long_prompt_refused():
    (encoded,) = encode([Example("ab", "c" * 50)], Letters(), 20, task="x")
    assert len(encoded.ids) == 20
    with pytest.raises(TaskDataError, match=r"task x, train, example 2: got a prompt of 30 tokens"):
        encode([Example("a", "b"), Example("a" * 30, "b")], Letters(), 20, task="x, train")


def test_what_is_cut_is_counted_and_loses_its_end():
    texts = [Example("ab", "c" * 17), Example("ab", "c" * 18), Example("ab", "c" * 30)]
    encoded = encode(texts, Letters(), 20, task="x")
    assert [example.cut for example in encoded] == [0, 1, 13]
    assert [example.ids[-1] == 2 for example in encoded] == [True, False, False]
    assert not any(example.split for example in encoded)
    counts = count_texts({"train": encoded, "holdout": encoded[:1], "canaries": []})
    assert counts["train"].model_dump() == {"texts": 3, "cut": 2, "cut_tokens": 14, "split": 0}
    assert counts["holdout"].cut == 0
    assert "canaries" not in counts
    assert said_of({"law": counts}) == "Cut at max_tokens, and so without their end: law 2 of 3 train."
    assert said_of({"law": {"holdout": counts["holdout"]}}) == ""
    assert counts["train"] + counts["holdout"] == TextRecord(texts=4, cut=2, cut_tokens=14)


def test_every_text_without_room_is_named_by_file_and_line():
    """All of them at once, of every task: whoever mends the data does so once."""
    long, empty = "a" * 30, Example("a", "\x02", "b.jsonl, line 9")
    first = [Example("a", "b"), Example(long, "b", "a.jsonl, line 2"), Example(long, "b", "a.jsonl, line 3"), empty]
    with pytest.raises(TaskDataError) as caught:
        encode(first, Letters(), 20, task="x, train")
    assert str(caught.value).startswith(
        "task x, train, 3 of 4 texts: got a prompt that leaves no room within 20 tokens: a.jsonl, lines 2, 3; "
        "a response without a token: b.jsonl, line 9; "
    )
    tasks = [Task("x", tuple(first), (Example("a", "b"),)), Task("y", (Example("c", "d"),), (Example(long, "e"),))]
    protocol = load_protocol("quickstart", max_tokens=20)
    with pytest.raises(TaskDataError) as caught:
        encode_tasks(tasks, Encoder(Letters(), protocol))
    assert "task x, train, 3 of 4 texts" in str(caught.value)
    assert "task y, holdout, example 1: a prompt of 30 tokens" in str(caught.value)


@pytest.mark.clause("CL-7")
def test_a_canary_that_is_cut_is_refused():
    """Recalled to where it is cut, it would count as recalled to its end."""
    task = Task("x", (Example("a", "b"),), (Example("a", "c"),), (Example("a", "b"), Example("a", "b" * 30)))
    with pytest.raises(TaskDataError, match="task x, canaries: got 1 of 2 cut at max_tokens"):
        encode_tasks([task], Encoder(Letters(), load_protocol("quickstart", max_tokens=20)))


def test_padding_is_masked_and_not_learned():
    examples = encode([Example("a", "b"), Example("a", "bcde")], Letters(), 20, task="x")
    batch = collate(examples, pad_id=7)
    assert batch.input_ids[0].tolist() == [*b"ab", 2, 7, 7, 7]
    assert batch.attention_mask.sum(axis=1).tolist() == [3, 6]
    assert batch.labels[0].tolist() == [IGNORED, ord("b"), 2, IGNORED, IGNORED, IGNORED]
    assert batch.tokens == 9


def test_each_epoch_holds_every_example_once_in_an_order_of_its_own():
    rng = np.random.default_rng(0)
    examples = encode([Example("a", "b" * int(rng.integers(1, 15))) for _ in range(50)], Letters(), 20, task="x")
    lengths = [len(example.ids) for example in examples]
    order = training_order(lengths, 4, 2, seed=3, phase=1)
    assert order == training_order(lengths, 4, 2, seed=3, phase=1)
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(50))
    assert len({str(o) for o in (first, second, training_order(lengths, 4, 1, seed=3, phase=2))}) == 3
    spread = [np.ptp([len(examples[i].ids) for i in batch]) for batch in first]
    assert np.mean(spread) < np.ptp([len(example.ids) for example in examples]) / 2  # of about one length
    for max_tokens, rows in ((112, 18), (4096, 4)):
        measured = evaluation_order(examples, 4, max_tokens)
        assert [len(batch) for batch in measured[:-1]] == [rows] * (49 // rows)
        assert sorted(index for batch in measured for index in batch) == list(range(50))
