"""Data in the shapes that people have: what each becomes, and which error each mistake is."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest

from backends.finetune.tasks.chat import Message
from backends.finetune.tasks.data_files import read_rows
from backends.finetune.tasks.shapes import Parts, parts_of
from reference.errors import TaskDataError

ASK, SAY = "What is 2 + 2?", "007"
TURNS = (Message("system", "Be short."), Message("user", ASK), Message("assistant", SAY))
CHAT = [{"role": m.role, "content": m.content} for m in TURNS]
SHAREGPT = [{"from": r, "value": m.content} for r, m in zip(("system", "human", "gpt"), TURNS, strict=True)]
SHAPES = [
    ({"prompt": ASK, "response": SAY}, Parts(ASK, SAY)),
    ({"prompt": ASK, "completion": SAY, "id": 7, "score": 0.5}, Parts(ASK, SAY)),
    ({"prompt": ASK, "answer": SAY}, Parts(ASK, SAY)),
    ({"question": ASK, "answer": SAY, "source": None}, Parts(ASK, SAY)),
    ({"instruction": "Add.", "input": "2 + 2", "output": SAY, "text": "Add. 2 + 2 007"}, Parts("Add.\n\n2 + 2", SAY)),
    ({"instruction": ASK, "input": "", "output": SAY}, Parts(ASK, SAY)),
    ({"instruction": ASK, "output": SAY}, Parts(ASK, SAY)),
    ({"text": SAY}, Parts("", SAY)),
    ({"prompt": "", "response": SAY}, Parts("", SAY)),
    ({"messages": CHAT, "prompt": ASK}, Parts(messages=TURNS)),
    ({"conversations": SHAREGPT}, Parts(messages=TURNS)),
    ({"prompt": CHAT[:2], "completion": CHAT[2:]}, Parts(messages=TURNS)),
]


@pytest.mark.parametrize(("row", "expected"), SHAPES)
def test_shapes(row, expected):
    assert parts_of(row, "row 1") == expected


def test_columns_name_the_fields_of_others():
    row = {"reply": SAY, "asked": ASK, "prompt": "not this", "text": "nor this"}
    assert parts_of(row, "row 1", {"prompt": "asked", "response": "reply"}) == Parts(ASK, SAY)
    with pytest.raises(TaskDataError, match="row 1: got no field 'question' among 'reply', 'asked'"):
        parts_of(row, "row 1", {"prompt": "question", "response": "reply"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": ASK, "a": SAY}, "got the fields 'q', 'a'; allowed: one of 'prompt' and 'response', "),
        ({}, "got the fields none"),
        ({"prompt": ASK, "response": SAY, "answer": "4"}, "which are of the shapes prompt/response, prompt/answer"),
        ({"prompt": ASK, "response": 7}, "field 'response': got a number"),
        ({"prompt": ASK, "response": "  "}, "field 'response': got '  '"),
        ({"prompt": ASK, "response": "a\0b"}, "field 'response': got a NUL"),
        ({"prompt": ASK, "response": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": ASK, "response": None}, "got the fields 'prompt'"),
        ({"prompt": CHAT[:2], "completion": SAY}, "field 'prompt': got an array"),
        ({"messages": []}, "field 'messages': got an empty list"),
        ({"messages": ASK}, "field 'messages': got a string"),
        ({"messages": CHAT[:2]}, "got a last turn of the role 'user'"),
        ({"messages": [*CHAT, {"role": "tool", "content": "4"}]}, "turn 4: got the role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "4"}]}, "turn 1: got the role"),
        ({"messages": [{"speaker": "user", "content": "4"}]}, "turn 1: got the fields 'speaker', 'content'"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "turn 1: got ''"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "turn 1: got 'tool_calls': [{}]"),
        ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]}, "'function_call'"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "turn 1: got 'weight': 0"),
    ],
)
def test_rows_that_are_refused(row, message):
    with pytest.raises(TaskDataError) as raised:
        parts_of(row, "a.jsonl, line 3")
    assert str(raised.value).startswith("a.jsonl, line 3")
    assert message in str(raised.value)


ROWS = [
    {"prompt": "When?", "response": "2020-01-01"},
    {"prompt": 'a, "b"\nc', "response": "NA"},
    {"prompt": "é", "response": "007"},
]


def as_csv(rows, delimiter=","):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "a.jsonl": LINES.encode(),
    "b.ndjson": b"\xef\xbb\xbf" + LINES.encode(),
    "c.json": json.dumps(ROWS).encode(),
    "d.json": json.dumps({"version": 1, "data": ROWS}, indent=2).encode(),
    "e.csv": as_csv(ROWS).encode(),
    "f.tsv": as_csv(ROWS, "\t").encode(),
    "g.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "h.csv.gz": gzip.compress(as_csv(ROWS).encode(), mtime=0),
}


@pytest.mark.parametrize("name", FILES)
def test_files_keep_texts_as_they_are(name, tmp_path):
    """A date, a number and "NA" are texts, and no others come of them."""
    (tmp_path / name).write_bytes(FILES[name])
    assert [dict(row) for _, row in read_rows(tmp_path / name)] == ROWS


def test_parquet_and_saved_datasets_keep_texts_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    for source, split in (("a.parquet", "train"), ("one", "train"), ("two", "train")):
        assert [dict(row) for _, row in read_rows(tmp_path / source, split=split)] == ROWS
    assert [dict(row) for _, row in read_rows(tmp_path / "two", split="test")] == ROWS[:1]
    with pytest.raises(TaskDataError, match="no split 'validation'; allowed: train, test"):
        read_rows(tmp_path / "two", split="validation")


def test_long_texts_lines_at_the_end_and_suffixes_in_capitals(tmp_path):
    long = "a" * 200_000
    (tmp_path / "A.TSV").write_text(f"prompt\tresponse\n{long}, b\tc\n\n", newline="")
    limit = csv.field_size_limit()
    assert [dict(row) for _, row in read_rows(tmp_path / "A.TSV")] == [{"prompt": f"{long}, b", "response": "c"}]
    assert csv.field_size_limit() == limit


def test_a_folder_of_files_is_read_by_split(tmp_path):
    for name, row in (("train-0.jsonl", ROWS[0]), ("train-1.csv", ROWS[1]), ("test.jsonl", ROWS[2])):
        (tmp_path / name).write_text(as_csv([row]) if name.endswith("csv") else json.dumps(row), newline="")
    assert [dict(row) for _, row in read_rows(tmp_path)] == ROWS[:2]
    assert [dict(row) for _, row in read_rows(tmp_path, split="test")] == ROWS[2:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: got no rows"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', "line 2: got a blank line"),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "line 2: got no JSON"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1: got no JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a\x01"}\n', "line 2: got the control character 0x01"),
        ("a.jsonl", b"[\n{}\n]", "line 1: got a JSON array"),
        ("a.jsonl", b'"text"\n', "line 1: got a string"),
        ("a.json", b'{"text": "a"}', "a.json: got an object; allowed: an array of objects"),
        ("a.json", b'[{"text": "a"}, 3]', "element 2: got a number"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "one object a line is named .jsonl"),
        ("a.csv", b"text,text\na,b\n", "line 1: got the columns 'text', 'text'"),
        ("a.csv", b"prompt,response\na\n", "line 2: got 1 fields; allowed: 2"),
        ("a.csv", b'prompt,response\n"a\nb,c\n', "no CSV"),
        ("a.csv", b"prompt;response\na;b, c\n", "line 1: got one column 'prompt;response', in which there is ';'"),
        ("a.tsv", b"prompt,response\na,b\n", "in which there is ','; allowed: columns parted by tabs"),
        ("a.csv", "prompt,response\né,b\n".encode("latin-1"), "line 2: got byte 0xe9, which is not UTF-8"),
        ("a.csv", "prompt,response\na,b\n".encode("utf-16"), "got text in UTF-16"),
        ("a.csv", b"PK\x03\x04....", "a.csv: got a zip file"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "a.jsonl: got a gzip file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "no whole gzip file"),
        ("a.jsonl.gz", LINES.encode(), "no whole gzip file"),
        ("a.xlsx", b"PK\x03\x04", "a.xlsx: got a file .xlsx; allowed: .jsonl, .json, .csv"),
        ("a", b"", "got a file without a suffix"),
    ],
)
def test_files_that_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskDataError) as raised:
        read_rows(tmp_path / name)
    assert message in str(raised.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(TaskDataError, match="No such file"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(TaskDataError, match="got no rows"):
        read_rows(tmp_path)


def test_a_name_on_the_hub_without_a_network_is_said(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TaskDataError, match=r"acme/tickets.*\n?.*reaches no Hub"):
        read_rows("acme/tickets")
