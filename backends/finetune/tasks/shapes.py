"""The shapes that data for fine-tuning have, known by their fields: what each row becomes.

| shape | fields | becomes |
|---|---|---|
| prompt and response | ``prompt``, ``response`` (or ``completion``, ``answer``) | a prompt and its answer |
| question and answer | ``question``, ``answer`` | a prompt and its answer |
| instruction | ``instruction``, ``output``, perhaps ``input`` | instruction, blank line, input; and its answer |
| messages | ``messages``: a list of {role, content} | a conversation |
| conversations | ``conversations``: a list of {from, value} (ShareGPT) | a conversation |
| text | ``text`` | a text, all of which is learned |

``prompt`` and ``completion`` may hold lists of {role, content} as well, which together are one conversation. Fields
that no shape names are let pass. A row of two shapes is refused, as one of them would be ignored, and so is a text
beside half of another shape. Beside a whole one ``text`` gives way, since it is a rendering of it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from backends.finetune.tasks.chat import Message
from reference.errors import TaskDataError

#: shape -> the fields it is known by
SHAPES = {
    "prompt/response": ("prompt", "response"),
    "prompt/completion": ("prompt", "completion"),
    "prompt/answer": ("prompt", "answer"),
    "question/answer": ("question", "answer"),
    "instruction/output": ("instruction", "output"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "text": ("text",),
}
KNOWN = ", ".join(" and ".join(repr(field) for field in fields) for fields in SHAPES.values())
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class Parts(NamedTuple):
    """What a row becomes: a prompt (empty for a text) and a response, or the messages of a conversation."""

    prompt: str = ""
    response: str = ""
    messages: tuple[Message, ...] = ()


def parts_of(row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> Parts:
    """What a row becomes. ``columns``: its fields by the names that the shapes give them, as {"prompt": "question"}.

    Raises: TaskDataError, which names row and field: a row of no shape or of two, a text that is none or is blank, a
    conversation that has no answer, or a role that no template knows. Clauses: ERR-1, ERR-2.
    """
    row = {field: value for field, value in row.items() if value is not None}
    if columns:
        row = _renamed(row, columns, where)
    shape = _shape_of(row, where)
    if shape in ("messages", "conversations"):
        return Parts(messages=_conversation(row[shape], f"{where}, field '{shape}'"))
    if shape == "text":
        return Parts(response=_text(row["text"], f"{where}, field 'text'"))
    ask, reply = SHAPES[shape]
    if isinstance(row[ask], list) and isinstance(row[reply], list):
        return Parts(messages=_conversation([*row[ask], *row[reply]], f"{where}, fields '{ask}' and '{reply}'"))
    prompt = _text(row[ask], f"{where}, field '{ask}'", may_be_empty=True)
    if shape == "instruction/output" and (more := _text(row.get("input", ""), f"{where}, field 'input'", True)):
        prompt += f"\n\n{more}"
    return Parts(prompt, _text(row[reply], f"{where}, field '{reply}'"))


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """Only the fields that ``columns`` name, under the names of the shapes."""
    missing = [column for column in columns.values() if column not in row]
    if missing:
        raise TaskDataError(
            where,
            got=f"no field {missing[0]!r} among {_listed(row)}",
            allowed="the fields that --columns names",
            remedy="correct --columns, or the row",
        )
    return {field: row[column] for field, column in columns.items()}


def _shape_of(row: Mapping[str, Any], where: str) -> str:
    found = [shape for shape, fields in SHAPES.items() if all(field in row for field in fields)]
    if len(found) > 1 and "text" in found:
        found.remove("text")
    if found == ["text"]:
        named = {field for fields in SHAPES.values() for field in fields}
        found += [f"'text' and {field!r}" for field in row if field in named - {"text"}]  # which would be ignored
    if len(found) != 1:
        raise TaskDataError(
            where,
            got=f"the fields {_listed(row)}" + (f", which are of the shapes {', '.join(found)}" if found else ""),
            allowed=f"one of {KNOWN}",
            remedy="say which fields are meant, as in --columns prompt=question response=reply; or rename them",
        )
    return found[0]


def _listed(row: Mapping[str, Any], most: int = 12) -> str:
    names = [repr(str(name)[:60]) for name in row]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"


def _conversation(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise TaskDataError(
            where,
            got="an empty list" if turns == [] else kind_of_value(turns),
            allowed="a list of turns, each with a role and a text",
            remedy='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    messages = tuple(_message(turn, f"{where}, turn {number}") for number, turn in enumerate(turns, start=1))
    if messages[-1].role != "assistant":
        raise TaskDataError(
            where,
            got=f"a last turn of the role {messages[-1].role!r}",
            allowed="a conversation that ends with an answer of the assistant",
            remedy="remove what comes after the last answer, or the row if it has none",
        )
    return messages


def _message(turn: Any, where: str) -> Message:
    pairs = [("role", "content"), ("from", "value")]
    names = next((names for names in pairs if isinstance(turn, dict) and all(name in turn for name in names)), None)
    if names is None:
        fields = f"the fields {_listed(turn)}" if isinstance(turn, dict) else kind_of_value(turn)
        raise TaskDataError(
            where, got=fields, allowed="'role' and 'content', or 'from' and 'value'", remedy="rename the fields"
        )
    role = ROLES.get(turn[names[0]]) if isinstance(turn[names[0]], str) else None
    if role is None:
        raise TaskDataError(
            where,
            got=f"the role {str(turn[names[0]])[:60]!r}",
            allowed=", ".join(ROLES),
            remedy="take turns of tools and functions out, or write them as text of the user",
        )
    unlearned = [name for name in ("weight", "train") if turn.get(name) in (0, False)]
    if ignored := [name for name in ("tool_calls", "function_call") if turn.get(name)] + unlearned:
        raise TaskDataError(
            where,
            got=f"{ignored[0]!r}: {turn[ignored[0]]!r:.100}",
            allowed="turns that are texts, of which all those of the assistant are learned",
            remedy="write a call of a tool as text, or take the row out",
        )
    return Message(role, _text(turn[names[1]], where, may_be_empty=role == "system"))


def _text(value: object, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise TaskDataError(where, got=kind_of_value(value), allowed="a text", remedy="write it as a text, in quotes")
    if not may_be_empty and not value.strip():
        raise TaskDataError(
            where, got=repr(value), allowed="a text that is not blank", remedy="remove the row: nothing to learn in it"
        )
    if "\0" in value:
        raise TaskDataError(where, got="a NUL character", allowed="text", remedy="remove it; it is no part of a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskDataError(
            where, got="half of a surrogate pair", allowed="Unicode text", remedy="write the character itself"
        )
    return value


def kind_of_value(value: object) -> str:
    """What a value is, in the words of JSON."""
    kinds = {
        list: "an array",
        dict: "an object",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "null" if value is None else f"a {type(value).__name__}")
