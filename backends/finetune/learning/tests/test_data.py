"""How examples are dealt: no text on two sides, and no more held out than is said."""

import pytest

from backends.finetune.learning.data import read_examples, split_examples
from backends.finetune.learning.tests.conftest import rows, write_jsonl
from backends.finetune.tasks.task import normal_text
from reference.errors import TaskDataError


def split(tmp_path, content, columns=None, held_out=()):
    return split_examples(read_examples(write_jsonl(tmp_path / "d.jsonl", content), columns), held_out)


def test_a_text_of_two_documents_is_on_one_side_alone(tmp_path):
    """The same row in several documents, and a question with its answer that is a plain text as well."""
    columns = {"prompt": "prompt", "response": "response", "document": "file"}
    copies = [{"prompt": f"q{n % 6}", "response": f"r{n % 6}", "file": f"f{n}"} for n in range(60)]
    asked = [{"prompt": f"q{n}", "response": f"r{n}"} for n in range(20)]
    written = [*asked, *({"text": row["prompt"] + row["response"]} for row in asked)]
    for content, named in ((copies, columns), (written, None)):
        splits = split(tmp_path, content, named)
        sides = [{normal_text(e.text) for e in side} for side in splits[:3]]
        assert all(sides)
        assert sum(map(len, sides)) == len(set().union(*sides))
        assert sum(map(len, splits[:3])) + splits.left_out == len(content)


@pytest.mark.parametrize("many", ["same", "joke", "tell me"])
def test_a_large_document_is_trained_on_and_small_ones_are_held_out(tmp_path, many):
    """90 of 100 rows ask the same. Whole documents are held out, within the shares where they fit."""
    content = [{"prompt": many, "response": f"r{n}"} for n in range(90)]
    splits = split(tmp_path, content + [{"prompt": f"q{n}", "response": "x"} for n in range(20)])
    assert (len(splits.train), len(splits.decision), len(splits.reported)) == (90, 4, 16)
    few = split(tmp_path, content + [{"prompt": f"q{n // 5}", "response": f"x{n}"} for n in range(10)])
    assert (len(few.train), len(few.decision), len(few.reported)) == (90, 5, 5)


def test_conversations_in_which_nobody_asks_are_documents_of_their_own(tmp_path):
    content = [{"messages": [{"role": "assistant", "content": f"line {n}"}]} for n in range(12)]
    assert [len(side) for side in split(tmp_path, content)[:3]] == [9, 1, 2]


def test_a_holdout_that_is_the_data_itself_is_named_as_such(tmp_path):
    read = read_examples(write_jsonl(tmp_path / "d.jsonl", rows("a", 12)))
    with pytest.raises(TaskDataError, match="12 examples, of which 12 measure a task"):
        split_examples(read, [each.example for each in read])
