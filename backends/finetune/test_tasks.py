"""Task files: what is read, and how each kind of bad line is named. Clauses: ERR-1, ERR-2."""

import hashlib
import json

import pytest

from backends.finetune.tasks import Example, Task, check_task_names, fingerprint, parse_task_option, read_examples
from reference.errors import TaskDataError

pytestmark = pytest.mark.clause("ERR-1", "ERR-2")

GOOD = '{"prompt": "Question: a?\\nAnswer:", "response": " b"}'


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
        ('["a"]', "a JSON array"),
        ('"a"', "a JSON string"),
        ("null", "a JSON null"),
        ("{}", "the fields none"),
        ('{"prompt": "a"}', "the fields 'prompt'"),
        ('{"text": "a", "response": "b"}', "the fields 'response', 'text'"),
        ('{"prompt": "a", "response": "b", "id": 3}', "the fields 'id', 'prompt', 'response'"),
        ('{"prompt": 3, "response": "b"}', "field 'prompt': got a JSON number"),
        ('{"prompt": "a", "response": null}', "field 'response': got a JSON null"),
        ('{"prompt": "a", "response": " "}', "field 'response': got ' '"),
        ('{"text": ""}', "field 'text': got ''"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ("", "a blank line"),
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
    with pytest.raises(TaskDataError, match="an empty file"):
        read_examples(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TaskDataError, match="No such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(TaskDataError, match="directory"):
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


def test_a_fingerprint_sees_every_part_of_a_task():
    one, other = (Example("p", "r"),), (Example("p", "s"),)
    tasks = [
        Task("a", one, other),
        Task("b", one, other),
        Task("a", other, one),
        Task("a", one, one),
        Task("a", one, ()),
    ]
    assert len({fingerprint(task) for task in tasks}) == len(tasks)
    assert fingerprint(tasks[0]) == fingerprint(Task("a", (Example("p", "r"),), other))


def test_a_fingerprint_sees_canaries_and_is_the_old_one_without_them():
    one, other = (Example("p", "r"),), (Example("p", "s"),)
    assert fingerprint(Task("a", one, other)) == fingerprint(Task("a", one, other, canaries=()))
    old = hashlib.sha256(b'["a", [["p", "r"]], [["p", "s"]]]').hexdigest()  # as run folders recorded it
    assert fingerprint(Task("a", one, other)) == old
    tasks = [Task("a", one, other), Task("a", one, other, one), Task("a", one, other, other), Task("a", one, (), other)]
    assert len({fingerprint(task) for task in tasks}) == len(tasks)


def test_own_task_files_have_no_canaries(tmp_path):
    train, holdout = write(tmp_path / "t.jsonl", GOOD), write(tmp_path / "h.jsonl", '{"text": "c"}')
    assert parse_task_option(f"law={train}:{holdout}").canaries == ()
