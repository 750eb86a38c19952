"""Prompt and answer as one text, over every kind of tokenizer: no token between them that the text does not hold, one
beginning, one end, and inference reads what training read."""

import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

from backends.finetune.tasks.token_ids import TokenIds, UnusableText

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
CORPUS = [
    "Question: what does a court hold? Answer: yes, it holds that the claim fails. Answer: no.",
    "say 3: aaa bbb\n\n### Response:\nthe quick brown fox, 12 345 dogs (all lazy)  and\ttabs",
]
PIECES = [
    "", " ", "  ", "\n", "\n\n", "Question", "Answer:", " yes", "yes", " no.", "3", "12", ": ", ",", "é", "日本", "ﬁ",
    "\t", "e\u0301", "fox", " brown fox", "the ", "🙂",
]  # fmt: skip


def _template(begins: bool, ends: bool) -> Any:
    single = f"{BEGIN} " * begins + "$A" + f" {END}" * ends
    return processors.TemplateProcessing(single=single, special_tokens=[(BEGIN, 1), (END, 2)])


def _trained(model: Any, trainer: Any, **parts: Any) -> Any:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def _bpe(*, begins: bool = True, ends: bool = False, trainer: dict[str, Any] | None = None, **parts: Any) -> Any:
    settings: dict[str, Any] = {"vocab_size": 420, "special_tokens": [UNKNOWN, BEGIN, END], "show_progress": False} | (
        trainer or {}
    )
    model = models.BPE(unk_token=UNKNOWN, byte_fallback=trainer is SENTENCEPIECE)
    tokenizer = _trained(model, trainers.BpeTrainer(**settings), **parts)
    tokenizer.post_processor = _template(begins, ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SENTENCEPIECE: dict[str, Any] = {"vocab_size": 700, "special_tokens": [UNKNOWN, BEGIN, END, *BYTES]}


def llama_2(**flags: bool) -> Any:
    """A space before every text, by a normalizer; no pre-tokenizer."""
    tokenizer = mistral("always", **flags)
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(space)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    return tokenizer


def mistral(scheme: str, **flags: bool) -> Any:
    """The same by a pre-tokenizer, at the start alone ("first") or after every special token too ("always")."""
    decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    space = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _bpe(pre_tokenizer=space, decoder=decoder, trainer=SENTENCEPIECE, **flags)


def byte_level(*, prefix: bool = False, **flags: bool) -> Any:
    space = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    return _bpe(pre_tokenizer=space, decoder=decoders.ByteLevel(), trainer=alphabet, **flags)


def unigram() -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[UNKNOWN, BEGIN, END], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer = _trained(
        models.Unigram(), trainer, normalizer=normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Metaspace()
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = _template(False, True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN)


def bert() -> Any:
    """Normalizers that change lengths, [CLS] before and [SEP] behind every text; neither bos nor eos."""
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.BertNormalizer()]
    tokenizer = _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        normalizer=normalizers.Sequence(steps),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]")


class Slow(PreTrainedTokenizer):
    """Written in Python: it has no offsets. Its tokens are letters, a space goes before every text."""

    def __init__(self, **settings: Any) -> None:
        self._vocabulary = {UNKNOWN: 0, BEGIN: 1, END: 2, "▁": 3} | {chr(code): code for code in range(9, 127)}
        super().__init__(bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, **settings)

    @property
    def vocab_size(self) -> int:
        return 127

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocabulary)

    def tokenize(self, text: str, *_: Any, **__: Any) -> list[str]:
        words: list[str] = []
        for number, part in enumerate(text.split(END)):
            words += [END] * (number > 0)
            words += list(part.removeprefix(BEGIN).replace(" ", "▁"))
            if part.startswith(BEGIN):
                words.insert(len(words) - len(part.removeprefix(BEGIN)), BEGIN)
        return words if text.startswith((BEGIN, END)) else ["▁", *words]

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocabulary.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return next(token for token, other in self._vocabulary.items() if other == index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [1, *token_ids_0]


KINDS: dict[str, Callable[[], Any]] = {
    "Llama-2": llama_2,
    "Llama-2, no bos": lambda: llama_2(begins=False),
    "Llama-2, bos and eos": lambda: llama_2(ends=True),
    "Mistral, first": lambda: mistral("first"),
    "Mistral, always": lambda: mistral("always"),
    "Mistral, never": lambda: mistral("never"),
    "bytes": lambda: byte_level(begins=False),
    "bytes, bos and eos": lambda: byte_level(ends=True),
    "bytes, space before": lambda: byte_level(prefix=True),
    "Unigram, eos": unigram,
    "BERT": bert,
    "slow": Slow,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def random_text() -> str:
    return "".join(random.choices(PIECES, k=random.randint(1, 6)))  # a fresh draw each time


def test_inference_reads_what_training_read_and_nothing_stands_between(tokenizer: Any) -> None:
    token_ids, usable, whole = TokenIds(tokenizer), 0, 0
    for _ in range(300):
        prompt, response = random_text(), random_text()
        try:
            found = token_ids.example(prompt, response)
        except UnusableText:  # white space alone, or what this tokenizer leaves out
            continue
        usable += 1
        assert not bare(tokenizer, prompt) or token_ids.prompt(prompt) == found.prompt, (prompt, response)
        ids, text = [*found.prompt, *found.answer], bare(tokenizer, prompt + response)
        for special in {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}:
            assert ids.count(special) <= 1
        assert ids.count(ids[-1]) == 1  # the end
        if UNKNOWN in tokenizer.all_special_tokens or not found.split:  # [UNK] stands for a whole word
            spoken = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids, text))
            assert len(set(spoken)) == 1, (prompt, response)
        if not found.split:
            whole += 1
            start = ids.index(text[0])
            assert ids[start : start + len(text)] == text
            assert len(ids) - len(text) <= 2
    assert usable > 100
    assert whole > 50


def test_the_usual_boundary_is_that_of_the_whole_text(tokenizer: Any) -> None:
    """And the answer is what the whole text has behind the prompt: no space of its own."""
    found = TokenIds(tokenizer).example("Question: a?\nAnswer:", " yes")
    assert not found.split
    assert bare(tokenizer, "Question: a?\nAnswer: yes")[1 - len(found.answer) :] == found.answer[:-1]
    assert tokenizer.decode(found.answer, skip_special_tokens=True).strip() == "yes"


def test_a_token_over_the_boundary_is_split_there() -> None:
    tokenizer = byte_level()
    assert tokenizer.tokenize("Answer: yes")[-1] == "Ġyes"
    found = TokenIds(tokenizer).example("Answer: ", "yes")
    assert found.split
    assert tokenizer.decode(found.prompt, skip_special_tokens=True) == "Answer: "
    assert tokenizer.decode(found.answer, skip_special_tokens=True) == "yes"
    assert found.prompt == TokenIds(tokenizer).prompt("Answer: ")
    tokenizer = llama_2()
    assert tokenizer.tokenize("Answer: yes")[-1] == "▁yes"
    found = TokenIds(tokenizer).example("Answer: ", "yes")
    assert found.split
    assert "▁" not in tokenizer.convert_ids_to_tokens(found.answer)[0]  # a continuation has no space before it


@pytest.mark.parametrize(
    "kind", ["Llama-2", "Llama-2, no bos", "Llama-2, bos and eos", "Mistral, first", "bytes", "slow"]
)
@pytest.mark.parametrize("prompt", ["", "Question:", BEGIN + "Question:"])
@pytest.mark.parametrize("response", [" yes", f" yes{END}", f" yes{END}\n"])
def test_there_is_one_beginning_and_one_end(kind: str, prompt: str, response: str) -> None:
    tokenizer = KINDS[kind]()
    for response_too in {response, BEGIN + response if not prompt else response}:
        found = TokenIds(tokenizer).example(prompt, response_too)
        ids = [*found.prompt, *found.answer]
        wants_beginning = not prompt or BEGIN in prompt or kind not in ("Llama-2, no bos", "bytes")
        assert ids.count(1) == wants_beginning
        assert ids.index(1) == 0 if wants_beginning else True
        assert ids.count(2) == 1
        assert 1 not in found.answer
        assert 2 in found.answer
        assert found.prompt == TokenIds(tokenizer).prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "response", "complaint"),
    [
        (BEGIN * 2 + "a", "b", "twice"),
        (BEGIN, BEGIN + "b", "twice"),
        ("", BEGIN * 2 + "b", "twice"),
        ("a", f"b{END}{END}", "twice"),
        ("a", END, "without a token"),
    ],
)
@pytest.mark.parametrize("kind", ["Llama-2", "bytes", "bytes, bos and eos", "slow"])
def test_two_beginnings_two_ends_and_no_answer_are_refused(
    kind: str, prompt: str, response: str, complaint: str
) -> None:
    if kind == "slow" and BEGIN * 2 in prompt + response:
        pytest.skip("it reads the second one as letters")
    with pytest.raises(UnusableText, match=complaint):
        TokenIds(KINDS[kind]()).example(prompt, response)


def test_an_answer_that_a_tokenizer_leaves_out_is_refused() -> None:
    with pytest.raises(UnusableText, match="without a token"):
        TokenIds(bert()).example("what", " \u200b ")


def test_without_beginning_or_prompt_there_is_nothing_to_read() -> None:
    tokenizer = byte_level(begins=False)
    tokenizer.bos_token = None
    with pytest.raises(UnusableText, match="an empty text"):
        TokenIds(tokenizer).prompt("")
