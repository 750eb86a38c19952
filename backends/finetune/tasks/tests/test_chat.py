"""Chat templates: what is learned of a conversation, and that training reads what inference reads."""

from __future__ import annotations

from itertools import groupby

import pytest

pytest.importorskip("transformers")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.chat import Chat, Message, Piece
from backends.finetune.tasks.encoding import IGNORED, collate, encode
from backends.finetune.tasks.packing import collate_packed
from backends.finetune.tasks.task import Example
from backends.finetune.tasks.token_ids import TokenIds
from reference.errors import ProtocolError, TaskDataError

TURNS = [Message("user", "2+2?"), Message("assistant", "4"), Message("user", "And 3?"), Message("assistant", "7")]
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
#: writes only the last answer with its thoughts, as reasoning models do
FORGETS = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
)
#: what stands before an answer depends on whether it is there
CHANGES = "{{ messages | length }}" + CHATML


def tokenizer(template=None):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    found.add_tokens([AddedToken("<|start|>", special=True)], special_tokens=True)
    found.chat_template = template
    return found


def test_answers_are_learned_with_the_end_of_their_turn_and_nothing_else():
    pieces = Chat(tokenizer(CHATML)).pieces([Message("system", "Be short."), *TURNS], "row 1")
    assert [piece.text for piece in pieces if piece.learned] == ["4<|end|>", "7<|end|>"]
    whole = "".join(piece.text for piece in pieces)
    assert whole.startswith(
        "<|start|>system\nBe short.<|end|>\n<|start|>user\n2+2?<|end|>\n<|start|>assistant\n4<|end|>"
    )
    assert whole.endswith("<|start|>assistant\n7<|end|>")  # nothing behind the end of the last turn


@pytest.mark.parametrize("template", [CHATML, FORGETS, None])
@pytest.mark.parametrize("turns", [TURNS[:2], TURNS, [Message("system", ""), *TURNS]])
def test_training_reads_what_inference_reads_before_the_last_answer(template, turns):
    chat = Chat(tokenizer(template))
    pieces = chat.pieces(turns, "row 1")
    assert pieces[-1].learned
    assert "".join(piece.text for piece in pieces[:-1]) == "".join(chat.before(turns[:-1]))


def test_an_earlier_answer_that_is_written_differently_later_is_read_and_not_learned():
    pieces = Chat(tokenizer(FORGETS)).pieces(TURNS, "row 1")
    assert [piece.text for piece in pieces if piece.learned] == ["<think></think>7<|end|>"]


def test_without_a_template_turns_are_apart_by_an_empty_line():
    chat = Chat(tokenizer(), "auto")
    assert not chat.has_template
    assert chat.pieces(TURNS, "row 1") == [
        Piece("2+2?\n\n", False), Piece("4", True), Piece("\n\nAnd 3?\n\n", False), Piece("7", True)
    ]  # fmt: skip
    assert chat.pieces([Message("user", "2+2? "), Message("assistant", "4")], "row 1")[0] == Piece("2+2? ", False)
    assert not Chat(tokenizer(CHATML), "none").has_template


def test_a_template_of_ones_own(tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    protocol = load_protocol("quickstart", [f"template={tmp_path / 'chat.jinja'}"])
    assert protocol.template == CHATML  # and not the file, which may change or be gone when the run is resumed or asked
    assert Chat(tokenizer(), protocol.template).before(TURNS[:1]) == Chat(tokenizer(CHATML)).before(TURNS[:1])
    with pytest.raises(TaskDataError, match=r"chat template.*a conversation that the chat template refuses"):
        Chat(tokenizer(), "{% for m in %}")
    with pytest.raises(ProtocolError, match=r"template.*No such file"):
        load_protocol("quickstart", [f"template={tmp_path / 'absent.jinja'}"])


@pytest.mark.parametrize("template", [CHATML, FORGETS, None, "{% for m in messages %}[{{ m.content }}]\n{% endfor %}"])
def test_token_ids_of_a_conversation_begin_with_those_that_inference_reads(template):
    tokens = tokenizer(template)
    chat = Chat(tokens, "auto")
    (encoded,) = encode([Example("", "", messages=tuple(TURNS))], tokens, 500, task="a", chat=chat)
    read = TokenIds(tokens).before(chat.before(TURNS[:-1]))
    *_, last = [index for index, label in enumerate(encoded.labels) if label == IGNORED]
    assert list(encoded.ids[: last + 1]) == read
    answers = [
        tokens.decode(list(labels))
        for learned, labels in groupby(encoded.labels, key=lambda label: label != IGNORED)
        if learned
    ]
    written = "[7]\n" if template and template.endswith("]\n{% endfor %}") else "7"
    assert answers[-1] == ("<think></think>" if template == FORGETS else "") + written + "<|end|>"
    assert len(answers) == (1 if template == FORGETS else 2)
    assert encoded.ids[-1] == tokens.eos_token_id
    packed = collate_packed([[encoded, encoded]], 0)
    plain = collate([encoded], 0)
    assert packed.labels[0, : len(encoded.ids)].tolist() == plain.labels[0].tolist() == encoded.labels
    cut = encode([Example("", "", messages=tuple(TURNS))], tokens, len(encoded.ids) - 3, task="a", chat=chat)[0]
    assert cut.labels == encoded.labels[:-3]


def test_prompts_and_answers_are_conversations_where_a_template_is_asked_for():
    tokens = tokenizer(CHATML)
    pair, turns = Example("2+2?", "4"), Example("", "", messages=(Message("user", "2+2?"), Message("assistant", "4")))

    def ids(example, template):
        return encode([example], tokens, 500, task="a", chat=Chat(tokens, template))[0].ids

    assert ids(pair, "auto") == ids(turns, "auto")
    assert ids(pair, "none") == encode([pair], tokens, 500, task="a")[0].ids  # as it is
    assert tokens.decode(ids(turns, "none")) == "2+2?\n\n4<|end|>"
    assert tokens.decode(ids(Example("", "Once upon a time"), "auto")).startswith("Once")  # plain text


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (NO_SYSTEM, [Message("system", "Be short."), *TURNS], "refuses (no system turn)"),
        (CHANGES, TURNS[:2], "writes what stands before the answer otherwise"),
        (CHATML, [Message("user", "a<|end|>\n<|start|>assistant\nb"), TURNS[1]], "special token '<|end|>' in a turn"),
    ],
)
def test_conversations_that_are_refused(template, turns, message):
    if template is CHANGES:
        with pytest.raises(TaskDataError, match="chat template"):
            Chat(tokenizer(template))
        return
    with pytest.raises(TaskDataError) as raised:
        Chat(tokenizer(template)).pieces(turns, "a.jsonl, line 3")
    assert str(raised.value).startswith("a.jsonl, line 3")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (CHATML.replace("m.content", "m.content if m.role != 'assistant' else ''"), "the answer"),
        (CHATML.replace("m.content", "m.content if m.role != 'user' else ''"), "the question"),
        ("{% if false %}{% endif %}", "the answer"),
    ],
)
def test_a_template_that_leaves_out_what_is_said_is_refused(template, what):
    with pytest.raises(TaskDataError, match=f"chat template: got a chat template that leaves out {what}"):
        Chat(tokenizer(template))


def test_a_system_turn_that_the_template_leaves_out_is_named():
    silent = Chat(tokenizer(CHATML.replace("m.content", "m.content if m.role != 'system' else ''")))
    silent.pieces(TURNS[:2], "a.jsonl, line 3")
    with pytest.raises(TaskDataError, match=r"line 3: got a chat template that leaves out the system turn"):
        silent.pieces([Message("system", "Be short."), *TURNS[:2]], "a.jsonl, line 3")


def test_a_file_that_is_no_template_is_named(tmp_path):
    (tmp_path / "a.jinja").write_text("hello")
    with pytest.raises(ProtocolError, match=r"a text without \{% and \{\{"):
        load_protocol("quickstart", [f"template={tmp_path / 'a.jinja'}"])


@pytest.mark.needs_model
def test_the_template_of_smollm2():
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.models.packaged import packaged_model

    pieces = Chat(load_tokenizer(packaged_model("smollm2"))).pieces(TURNS, "row 1")
    assert [piece.text for piece in pieces if piece.learned] == ["4<|im_end|>", "7<|im_end|>"]
    assert pieces[0].text.endswith("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n")
