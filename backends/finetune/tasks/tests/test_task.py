"""Task files: what is read, and how each kind of bad line is named. Clauses: ERR-1, ERR-2."""

import bz2
import gzip
import hashlib
import json
import lzma
import os

import pytest

from backends.finetune.tasks.task import (
    Example,
    Task,
    check_task_names,
    check_tasks,
    fingerprint,
    listed,
    parse_task_option,
    parse_task_options,
    read_task,
)
from reference.errors import TaskDataError

pytestmark = pytest.mark.clause("ERR-1", "ERR-2")

GOOD = '{"prompt": "Question: a?\\nAnswer:", "response": " b"}'


def read_examples(path):
    """The examples of one file."""
    return read_task("any", path, path).train


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_both_forms_are_read_in_order_and_unchanged(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, '{"text": " é \\u2028 x"}', '{"prompt": "", "response": "c"}')
    assert read_examples(path) == (
        Example("Question: a?\nAnswer:", " b"),
        Example("", " é \u2028 x"),
        Example("", "c"),
    )


def test_a_raw_line_separator_inside_a_text_does_not_split_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False))
    assert read_examples(path) == (Example("", "one\u2028two\x85three"),)


def test_byte_order_mark_windows_line_ends_and_blank_last_lines_are_let_pass(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.encode() + b"\r\n \r\n\r\n")
    assert read_examples(path) == (Example("Question: a?\nAnswer:", " b"),) * 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('["a"]', "got an array"),
        ('"a"', "got a string"),
        ("null", "got null"),
        ("{}", "the fields none"),
        ('{"prompt": "a"}', "the fields 'prompt'"),
        ('{"text": "a", "response": "b"}', "'text' and 'response'"),
        ('{"prompt": 3, "response": "b"}', "field 'prompt': got a number"),
        ('{"prompt": "a", "response": null}', "the fields 'prompt'"),
        ('{"prompt": "a", "response": " "}', "field 'response': got ' '"),
        ('{"text": ""}', "field 'text': got ''"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ("", "a blank line"),
        # what two readers could read differently
        ('{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        ('{"prompt": "a", "response": "b", "prompt": "c"}', "the key 'prompt' stands twice"),
        ('{"text": "a\\u0000b"}', "a NUL character"),
        ('{"text": "a\x07b"}', r"the control character 0x07, which JSON writes as \u0007"),
        ('{"text": NaN}', "NaN is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_field(tmp_path, line, complaint):
    path = write(tmp_path / "bad.jsonl", GOOD, line, GOOD)
    with pytest.raises(TaskDataError) as caught:
        read_examples(path)
    message = str(caught.value)
    assert f"{path}, line 2" in message
    assert complaint in message
    assert caught.value.allowed
    assert caught.value.remedy
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskDataError, match="got no rows"):
        read_examples(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TaskDataError, match="No such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(TaskDataError, match="got no rows"):
        read_examples(tmp_path)


def test_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(TaskDataError, match="line 2: got byte 0xe9, which is not UTF-8"):
        read_examples(path)


def test_a_task_option_names_the_task_and_its_two_files(tmp_path):
    train = write(tmp_path / "train.jsonl", GOOD)
    holdout = write(tmp_path / "hold.jsonl", '{"text": "c"}')
    expected = Task("law", (Example("Question: a?\nAnswer:", " b"),), (Example("", "c"),))
    assert parse_task_option(f"law={train}:{holdout}") == expected


@pytest.mark.parametrize("option", ["", "law", "law=a.jsonl", "=a:b", "law=:b", "law=a:", "a:b"])
def test_another_form_of_option_is_refused(option):
    with pytest.raises(TaskDataError, match=r"NAME=TRAIN\.jsonl:HOLDOUT\.jsonl"):
        parse_task_option(option)


def test_a_text_in_both_files_is_refused_with_both_lines(tmp_path):
    train = write(tmp_path / "train.jsonl", '{"text": "x"}', GOOD)
    holdout = write(tmp_path / "hold.jsonl", '{"text": "c"}', '{"text": "d"}', '{"text": "Question:  a? Answer: b"}')
    with pytest.raises(TaskDataError) as caught:
        parse_task_option(f"law={train}:{holdout}")
    assert f"{holdout}, line 3" in str(caught.value)
    assert f"{train}, line 2" in str(caught.value)


def test_task_names_must_differ():
    check_task_names(["a", "b"])
    with pytest.raises(TaskDataError, match="'a' twice"):
        check_task_names(["a", "b", "a"])


def test_a_fingerprint_sees_every_part_of_a_task_and_is_the_old_one_without_canaries():
    one, other = (Example("p", "r"),), (Example("p", "s"),)
    tasks = [
        Task("a", one, other),
        Task("b", one, other),
        Task("a", other, one),
        Task("a", one, one),
        Task("a", one, ()),
        Task("a", one, other, one),
        Task("a", one, other, other),
        Task("a", one, (), other),
    ]
    assert len({fingerprint(task) for task in tasks}) == len(tasks)
    old = hashlib.sha256(b'["a", [["p", "r"]], [["p", "s"]]]').hexdigest()  # as run folders recorded it
    assert fingerprint(Task("a", (Example("p", "r"),), other, canaries=())) == fingerprint(tasks[0]) == old


def text_line(text):
    return json.dumps({"text": text})


def test_what_one_task_holds_out_no_task_trains_on(tmp_path):
    """The first task's holdout text among the second one's training texts would inflate what is transferred."""
    files = {
        "a-train": ["one", "two"],
        "a-holdout": ["three", "The  claim\tfails"],
        "b-train": ["four", "five", "the claim fails"],
        "b-holdout": ["six"],
    }
    for name, texts in files.items():
        write(tmp_path / f"{name}.jsonl", *map(text_line, texts))
    options = [f"{name}={tmp_path}/{name}-train.jsonl:{tmp_path}/{name}-holdout.jsonl" for name in "ab"]
    assert [parse_task_option(option).name for option in options] == ["a", "b"]  # each is clean by itself
    for order in (options, options[::-1]):
        with pytest.raises(TaskDataError) as caught:
            parse_task_options(order)
        expected = f"{tmp_path}/a-holdout.jsonl, line 2: got the text of {tmp_path}/b-train.jsonl, line 3"
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "twin",
    [
        "what is a claim? a right",
        "What is\u00a0a claim?\n\nA right",
        "What is a cla\u00adim? A\u200b right",
        "Ｗhat is a claim?A right",
    ],
)
def test_two_forms_of_a_text_are_the_same(twin):
    known = Example("What is a claim?", " A right", "t, line 1")
    with pytest.raises(TaskDataError, match=r"h, line 2: got the text of t, line 1"):
        check_tasks([Task("x", (known,), (Example("", "else"), Example("", twin, "h, line 2")))])
    check_tasks([Task("x", (known, Example("", twin)), (Example("", "What is a claim? A left"),))])  # twice in training


def test_a_text_is_held_out_once_and_a_canary_is_trained_on_by_its_own_task():
    a, b, c = (Example("", name) for name in "abc")
    with pytest.raises(TaskDataError, match=r"task x, holdout, example 2: got the text of task x, holdout, example 1"):
        check_tasks([Task("x", (a,), (b, b))])
    check_tasks([Task("x", (a,), (b,)), Task("y", (c,), (b,))])  # two tasks may measure the same
    check_tasks([Task("x", (a,), (b,), (a,)), Task("y", (c,), (b,))])
    with pytest.raises(TaskDataError, match=r"task x, canaries, example 1: got the text of task y, train, example 2"):
        check_tasks([Task("x", (a,), (b,), (a,)), Task("y", (c, a), (b,))])


def test_a_file_is_used_once(tmp_path):
    a, b, c, d = (write(tmp_path / f"{name}.jsonl", text_line(name)) for name in "abcd")
    (link := tmp_path / "link.jsonl").symlink_to(a)
    with pytest.raises(TaskDataError, match=r"the holdout file of x: got .*, which is the training file of x"):
        parse_task_options([f"x={a}:{a}"])
    with pytest.raises(
        TaskDataError, match=r"the training file of y: got .*link.jsonl, which is the training file of x"
    ):
        parse_task_options([f"x={a}:{b}", f"y={link}:{c}"])
    with pytest.raises(TaskDataError, match="'x' twice"):
        parse_task_options([f"x={a}:{b}", f"x={c}:{d}"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (gzip.compress(GOOD.encode(), mtime=0), "a gzip file"),
        (bz2.compress(GOOD.encode()), "a bzip2 file"),
        (lzma.compress(GOOD.encode()), "an xz file"),
        (b"PK\x03\x04\x14\x00\x00\x00", "a zip file"),
        (b"PAR1\x15\x04\x15\x00PAR1", "a Parquet file"),
        (b"ARROW1\x00\x00\xff\xff\xff\xff", "an Arrow file"),
        (b"\x28\xb5\x2f\xfd\x20\x01", "a zstd file"),
        (b"\x80\x04\x95\x0c\x00\x00\x00", "a Python pickle"),
        (GOOD.encode("utf-16"), "text in UTF-16"),
        (GOOD.encode("utf-16-be"), "text in UTF-16"),
        (GOOD.encode("utf-32"), "text in UTF-32"),
        (GOOD.encode() + b"\n\0", "a NUL byte in line 2"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, content, found):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskDataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}: got {found}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(TaskDataError, match="a named pipe"):
        read_examples(tmp_path / "pipe.jsonl")


def test_a_task_is_read_in_any_shape_and_kind_of_file(tmp_path):
    (tmp_path / "train.csv").write_text("question,answer,id\na?,b,1\n")
    asked = {"messages": [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "d"}]}
    (tmp_path / "holdout.json").write_text(json.dumps([asked]))
    task = parse_task_option(f"mine={tmp_path}/train.csv:{tmp_path}/holdout.json")
    assert task.train == (Example("a?", "b"),)
    assert [message.content for message in task.holdout[0].messages] == ["c?", "d"]


def test_where_an_example_was_read_is_no_part_of_it(tmp_path):
    (read,) = read_examples(write(tmp_path / "a.jsonl", GOOD))
    assert read.place == f"{tmp_path / 'a.jsonl'}, line 1"
    assert read == Example(read.prompt, read.response)
    assert len({read, Example(read.prompt, read.response)}) == 1


def test_many_places_are_listed_by_file():
    places = [*(f"a.jsonl, line {number}" for number in range(1, 30)), "b.jsonl, line 7"]
    assert listed(places, most=3) == "a.jsonl, lines 1, 2, 3 and 26 more; b.jsonl, line 7"
