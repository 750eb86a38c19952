"""Mutated model folders: each is refused in one error of this project, or loads as the same model.

**What can be seen.** A tensor that is missing, too many, of another shape or not finite; a token that has no row in the
embedding; a text longer than the positions; a file that is damaged or is none. **What cannot.** A configuration that
still describes these tensors but computes otherwise (another rms_norm_eps, rope_theta, activation, split into heads,
start of text), and a tokenizer that still gives ids below the vocabulary: nothing in the folder says what they were. So
whatever loads must hold exactly the tensors of the file, tokens must be rows of the embedding, and where the mutation
left config.json alone, or changed only what no decoder reads, the logits must be those of before, bit by bit.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
from tokenizers import Tokenizer, models

from backends.finetune.engines.torch.model import load_base
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.protocols.protocol import Protocol
from reference.errors import CRMAError

COUNT = int(os.environ.get("CRMA_FUZZ", "400"))  # mutations
SECONDS = 10.0  # that one may take, on a busy machine
TOKENS = 24
PROTOCOL = Protocol(name="made up", description="", tasks=["A"], train=1, holdout=1, max_tokens=TOKENS)
IDS = torch.arange(3, 3 + TOKENS)[None]
#: Fields of config.json that decide nothing of what is tested here: other values of them must not change a logit
UNREAD = ("architectures", "transformers_version", "dtype", "use_cache", "initializer_range", "unknown")
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 31, 33, 100, 10**7, 10**12, 2**63, 10**30, -(2**63), 0.5, -0.5, 1e308,
    "", "x", "llama", "../../etc/passwd", "\x00", "\u202e", [], {}, [None], [-1], ["x", 5], {"a": 1},
    [[[[[[[[]]]]]]]], {"type": "yarn"}, {"rope_type": "linear", "factor": -1.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    """A Llama with a head of its own, a tied one of another family, and GPT-2, whose positions are a table."""
    sizes = {"vocab_size": 270, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = {
        "qwen2": {"num_key_value_heads": 1, "intermediate_size": 24, "tie_word_embeddings": True},
        "gpt2": {"n_positions": 32},
        "gemma2": {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8, "sliding_window": 8},
    }
    made = [tiny_model]
    words = ["<unk>", *(chr(code) for code in range(32, 127)), "say", "##a", "▁say"]
    tokenizers = {
        "gpt2": models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="<unk>"),
        "gemma2": models.Unigram([(word, -float(index)) for index, word in enumerate(words)], 0, byte_fallback=False),
    }
    for kind, more in kinds.items():
        made.append(tmp_path_factory.mktemp("models") / kind)
        shutil.copytree(tiny_model, made[-1])
        if kind in tokenizers:
            Tokenizer(tokenizers[kind]).save(str(made[-1] / "tokenizer.json"))
        torch.manual_seed(0)
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = transformers.AutoConfig.for_model(kind, **sizes, **more, **ids)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made[-1])
    return made


def loaded(folder: Path) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(folder)
    return load_base(folder, PROTOCOL, torch.device("cpu")), tokenizer


@torch.no_grad()
def logits_of(model: Any) -> Any:
    return model(input_ids=IDS, use_cache=False).logits


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """TimeoutError within the block after so long; whoever turns it into another error is found by the clock."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no end within {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a JSON document; of a long object or list only some."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys[:6] + keys[6:40] + keys[-2:]:
            found += places(value[key], (*path, key))
    return found


def mutate_json(text: str, draw: random.Random) -> tuple[str, tuple[Any, ...]]:
    """One value of a document dropped, replaced, added or doubled; the path of it."""
    document = json.loads(text)
    path = draw.choice(places(document) or [()])
    if not path:
        return json.dumps(draw.choice(ODD)), ()
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    last, kind = path[-1], draw.randrange(8)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        new = draw.choice(
            ["unknown", "auto_map", "quantization_config", "rope_scaling", "layer_types", "tie_word_embeddings"]
        )
        holder[new] = draw.choice(ODD)
        path = (*path[:-1], new)
    elif kind == 2:
        holder[last] = float(draw.choice(["nan", "inf", "-inf"]))  # written as NaN, which is not JSON
    elif kind == 3:
        depth = draw.choice([50, 900, 5000])
        return json.dumps(document)[:-1] + ', "unknown": ' + "[" * depth + "]" * depth + "}", ("unknown",)
    elif kind == 4 and isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
        holder[last] = draw.choice(
            [holder[last] * 2, holder[last] + 1, -holder[last], holder[last] * 1000, str(holder[last])]
        )
    elif kind == 5 and isinstance(holder, dict):
        whole = json.dumps(document)
        return whole.replace(json.dumps(last), f"{json.dumps(last)}: 1, {json.dumps(last)}", 1), path
    else:
        holder[last] = draw.choice(ODD)
    return json.dumps(document), path


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return b""
    changed = bytearray(data)
    if kind == 2:
        return bytes(changed) + draw.choice([b"\0", b"}", b"garbage", b" "])
    for _ in range(draw.choice([1, 1, 3, 20])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def outcome(folder: Path, what: str, is_neutral: bool, logits: Any, tensors: dict[str, Any]) -> str:
    """ "refused" or "same", or what is wrong with a mutated folder.

    ``what``: the mutation in words. ``is_neutral``: the logits must be those of before.
    """
    started = time.monotonic()
    try:
        with alarm(SECONDS):
            model, tokenizer = loaded(folder)
            found = logits_of(model)
    except CRMAError as error:
        kind = "refused" if all((error.field, error.got, error.allowed, error.remedy)) else f"{what}: an empty part"
    except BaseException as error:  # a panic in Rust is no Exception
        kind = f"{what}: {type(error).__name__}: {str(error)[:300]}"
    else:
        kind = "same"
        own = dict(model.named_parameters())
        rows = model.get_input_embeddings().num_embeddings
        used = [*tokenizer("say 5: aaa")["input_ids"], *tokenizer.get_vocab().values()]
        if own.keys() != tensors.keys() or not all(torch.equal(own[name], tensors[name]) for name in own):
            kind = f"{what}: other tensors, in silence"
        elif any(not 0 <= token < rows for token in used):
            kind = f"{what}: tokens beyond the embedding, in silence"
        elif not found.isfinite().all():
            kind = f"{what}: logits that are not finite, in silence"
        elif is_neutral and not torch.equal(found, logits):
            kind = f"{what}: other logits, in silence"
    if time.monotonic() - started > SECONDS:
        kind = f"{what}: no end within {SECONDS} s"
    return kind


def mutation(folder: Path, draw: random.Random) -> tuple[str, bool]:
    """Change one file of ``folder``; what was done, and whether the model must compute as before."""
    often = ["config.json"] * 5 + ["tokenizer.json"] * 3
    file = folder / draw.choice([*often, "tokenizer_config.json", "generation_config.json", "model.safetensors"])
    data = file.read_bytes()
    if file.suffix == ".safetensors" or draw.random() < 0.25:
        # Of weights the header alone: nothing in the folder says what their values were
        end = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
        file.write_bytes(mutate_bytes(data[:end], draw) + data[end:])
        return f"bytes of {folder.name}/{file.name}", file.name != "config.json"
    text, path = mutate_json(data.decode(), draw)
    file.write_text(text)
    words = f"{folder.name}/{file.name}: {'.'.join(map(str, path))}: {text[:80]}"
    return words, file.name != "config.json" or (len(path) == 1 and path[0] in UNREAD)


def test_a_mutated_folder_is_refused_or_the_same_model(folders: list[Path], tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    before = {}
    for folder in folders:
        model, _ = loaded(folder)
        before[folder] = logits_of(model), dict(model.named_parameters())
    for index in range(COUNT):
        draw = random.Random(f"broken folders {index}")
        original = folders[index % len(folders)]
        copy = tmp_path / original.name
        shutil.copytree(original, copy)
        counts[outcome(copy, *mutation(copy, draw), *before[original])] += 1
        shutil.rmtree(copy)
    wrong = [kind for kind in counts if kind not in ("refused", "same")]
    assert not wrong, f"{len(wrong)} of {COUNT}:\n" + "\n".join(wrong)
    assert counts["refused"] > COUNT / 4, counts
    assert counts["same"] > COUNT / 20, counts
