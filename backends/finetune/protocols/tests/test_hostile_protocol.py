"""Whatever a protocol, a setting or an option says, it ends in a valid protocol or in one message, and at once."""

import os
import random

import pytest

from backends.finetune.methods.conditions import KNOWN
from backends.finetune.protocols.protocol import MOST_ORDERED, LoraSection, Protocol, load_protocol, protocols_folder
from backends.finetune.training.threads import set_up_framework
from reference.errors import ConfigError, ProtocolError

VALUES = [
    "-1", "0", "1", "2e7", "10000000000", "1e400", "-1e400", "nan", "inf", "-0.0", "1" * 5000, "0x" + "f" * 5000,
    "true",
    '""', '"("', '"*"', '"[z-a]"', '"(?P<"', '"a\\u0000b"', '"\\u001b[2J\\u202e"', "[]", "[[]]", '["", "a"]', "{}",
    "{a = 1}", "[" * 20_000, "[" * 500 + "]" * 500, '["x", 1]', "1979-05-27", "07:32:00", '"""', "'", "\x00", "\x1b",
    "\ud7ff", '"' + "x" * 10**5 + '"', "[0, 0]", "4294967296", "'../../x'", '"/x"', "a", "#", "=", "]",
]  # fmt: skip
JUNK = [
    "[lora]\n",
    "[lora.rank]\n",
    "[[crma]]\n",
    "[a" + ".a" * 3000 + "]\nb = 1\n",
    "lora = 1\n",
    "\ufeff",
    "\x00",
    "x = 1\n",
]
FIELDS = [
    *Protocol.model_fields, "lora.rank", "lora.alpha", "lora.target_modules", "lora.clip", "lora.learning_rate",
    "crma.streams", "crma.rank", "crma.iterations", "crma.gate_logit", "crma.basis.clip", "crma.basis", "ewc.examples",
    "replay.batch_size", "o_lora.strength", "full.clip", "", ".", "..", "a" + ".a" * 3000, "lora.rank.x",
    "name.x", "\x1b",
]  # fmt: skip


def ends_well(*arguments):
    """Whether it is a protocol; if not, there is one short message."""
    try:
        protocol, message = load_protocol(*arguments), ""
    except ProtocolError as error:
        protocol, message = None, str(error)
    assert len(message) < 4000
    if protocol is None:
        return False
    assert Protocol.model_validate(protocol.model_dump(mode="json")) == protocol
    return True


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice((1, 1, 2, 5))):
        lines = text.splitlines(keepends=True) or ["\n"]
        place, at = rng.randrange(len(lines)), rng.randrange(len(text) + 1)
        key = lines[place].partition("=")[0]
        kind = rng.randrange(6)
        if kind < 2:  # twice as often: another value in a field
            lines[place] = f"{key}= {rng.choice(VALUES)}\n"
        elif kind == 2:
            lines.insert(place, rng.choice([*JUNK, lines[place]]))
        elif kind == 3:
            del lines[place]
        text = "".join(lines)
        if kind == 4:
            text = text[:at] + text[at + rng.randrange(1, 40) :]
        elif kind == 5:
            text = text[:at] + rng.choice([chr(rng.randrange(0xD800)), *"[]{}\"'=.#\n"]) + text[at:]
    return text


def test_mutated_protocols_end_in_a_protocol_or_one_message(tmp_path):
    rng = random.Random(12)
    texts = [path.read_text(encoding="utf-8") for path in sorted(protocols_folder().glob("*.toml"))]
    outcomes = []
    for _ in range(400):
        (tmp_path / "p.toml").write_text(mutated(rng.choice(texts), rng), encoding="utf-8")
        outcomes.append(ends_well(str(tmp_path / "p.toml")))
    assert 20 < sum(outcomes) < 380


def test_mutated_bytes_do_too(tmp_path):
    rng = random.Random(13)
    data = (protocols_folder() / "quickstart.toml").read_bytes()
    for _ in range(100):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "p.toml").write_bytes(changed)
        ends_well(str(tmp_path / "p.toml"))


def test_settings_do_too():
    rng = random.Random(14)
    for field in FIELDS:
        for value in rng.sample(VALUES, 10):
            ends_well("quickstart", [f"{field}={value}"])
    for setting in ("", "=", "lora", "lora.rank", "lora.rank=4\nx=1", "lora.rank=4\n[x]", "=1", " = ", "\0=\0"):
        ends_well("quickstart", [setting])


@pytest.mark.parametrize(
    "setting",
    [
        "lora.rank=2e7", "lora.rank=16385", "crma.rank=2e7", "crma.streams=100000", "crma.iterations=1e9", "epochs=1e9",
        "train=1e12", "holdout=1e12", "batch_size=1e9", "accumulation=1e9", "max_tokens=1e12", "panel=1e12",
        "canaries=1e12", "warmup_steps=1e18", "replay.memory_per_task=1e12", "replay.batch_size=1e9",
        "ewc.examples=1e12",
        "lora.alpha=1e18", "crma.gate_logit=1e200", "ewc.strength=1e200", "full.clip=1e200", "checkpoint_every=1e18",
        'lora.target_modules="("', "lora.target_modules=(", "lora.target_modules=[]",
        'lora.target_modules=["q_proj", ""]',
        "lora.target_modules=''", 'name="../../x"', 'name=".."', 'name="a/b"', r'name="a\u0000"', r'model="a\u0000"',
        f"lora.rank={'9' * 5000}", f"lora.rank={'[' * 50_000}", "a.b.c.d=1",
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(setting):
    with pytest.raises(ProtocolError) as refused:
        load_protocol("quickstart", [setting])
    assert setting.partition("=")[0].partition(".")[0] in str(refused.value)


OF_METHODS = {name for condition in KNOWN.values() if (name := condition.settings_section)}


@pytest.mark.parametrize("section", ["lora", "crma", "crma.basis", *sorted(OF_METHODS)])
def test_a_misspelt_field_is_told_those_that_there_are(section):
    """Of every section, one that a protocol may leave out included."""
    with pytest.raises(ProtocolError, match=rf"{section}\.strenght: got 1; allowed: the fields \w+"):
        load_protocol("quickstart", [f"{section}.strenght=1"])


def test_every_order_of_many_tasks_is_refused():
    tasks = [f"t{number}" for number in range(MOST_ORDERED + 1)]
    with pytest.raises(ProtocolError, match=r"8! orders"):
        load_protocol("quickstart", ['orderings="all"'], tasks=tasks)
    load_protocol("quickstart", ['orderings="all"'], tasks=tasks[1:])


def test_one_budget_takes_the_others_place(tmp_path):
    with pytest.raises(ProtocolError, match="displacement_budget or data_budget, one of the two"):
        load_protocol("quickstart", ["crma.data_budget=0.003", "crma.displacement_budget=0.005"])
    crma = load_protocol("quickstart", ["crma.data_budget=0.003"]).crma
    assert (crma.data_budget, crma.displacement_budget) == (0.003, None)
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "own"\ndescription = ""\ntasks = ["a"]\ntrain = 1\nholdout = 1\n[crma]\ndata_budget = 0.01\n'
    )
    assert load_protocol(str(path), ["crma.displacement_budget=0.02"]).crma.data_budget is None
    assert load_protocol(str(path), ["crma.rank=2"]).crma.data_budget == 0.01


def test_a_protocol_may_begin_with_a_byte_order_mark(tmp_path):
    data = (protocols_folder() / "quickstart.toml").read_bytes()
    (tmp_path / "p.toml").write_bytes(b"\xef\xbb\xbf" + data)
    assert load_protocol(str(tmp_path / "p.toml")) == load_protocol("quickstart")


@pytest.mark.parametrize(
    "name", ["zero.toml", "a\0.toml", "x" * 5000 + ".toml", "\x1b.toml", "fifo.toml", "dir.toml", "holes.toml"]
)
def test_a_path_that_is_no_file_is_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("/dev/zero", "zero.toml")
    os.mkfifo("fifo.toml")
    os.mkdir("dir.toml")
    with open("holes.toml", "wb") as file:
        file.truncate(2**43)
    with pytest.raises(ProtocolError):
        load_protocol(name)


@pytest.mark.parametrize(
    ("modules", "part"),
    [
        (["q_proj", "nope"], "this model has no nope"),
        (["nope"], "nope"),
        (r".*\.nope", "nope"),
        (["embed_tokens"], "embed_tokens is no linear layer"),
        (["q_proj", "norm"], "norm"),
        (".*", "not supported"),
    ],
)
def test_modules_that_the_model_does_not_have_are_named(modules, part):
    pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    from backends.finetune.engines.torch.lora import LoraSlot

    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8, pad_token_id=0
    )
    with pytest.raises(ProtocolError, match=r"lora\.target_modules") as refused:
        LoraSlot(LlamaForCausalLM(config), LoraSection(target_modules=modules))
    assert part in str(refused.value)
    assert LoraSlot(LlamaForCausalLM(config), LoraSection(target_modules=["q_proj", "mlp.up_proj"])).layers


def test_a_lora_wider_than_the_model_is_refused_before_anything_is_allocated(tiny_model):
    from backends.finetune.models.check_fits import check_fits

    settings = [f'model="{tiny_model}"', "max_tokens=8"]
    check_fits(tiny_model, load_protocol("quickstart", [*settings, "lora.rank=16"]))
    with pytest.raises(ProtocolError, match=r"lora\.rank: got 17; allowed: at most 16"):
        check_fits(tiny_model, load_protocol("quickstart", [*settings, "lora.rank=17"]))


@pytest.mark.parametrize("threads", [-1, 0, 1025, 10**9, 10**30])
@pytest.mark.parametrize("backend", ["torch-cpu", "jax-cpu"])
def test_threads_that_no_processor_has_are_refused(backend, threads):
    with pytest.raises(ConfigError, match="--threads"):
        set_up_framework(backend, threads)


@pytest.mark.parametrize(
    "mesh", ["9" * 5000 + "x1", "1x" + "9" * 30, "1000000000x1", "0x1", "-1x1", "x", "", "\x1bx1", "1x1x1"]
)
def test_a_mesh_that_no_machine_has_is_refused(mesh):
    pytest.importorskip("jax")
    from backends.finetune.engines.jax.placement import placement

    with pytest.raises(ConfigError, match="--mesh"):
        placement("jax-cpu", mesh)


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "a\0.toml"],
        ["finetune", "quickstart", "--out", "a\0b"],
        ["finetune", "quickstart", "--model", "a\0b"],
        ["finetune", "quickstart", "--task", "a=b\0:c"],
        ["finetune", "quickstart", "--set", "model=a\0"],
        ["report", "a\0b"],
        ["report", "n" * 300],
        ["certify", "a\0b"],
        ["certify", "a", "--json", "a\0b"],
        ["route", "a\0b"],
        ["generate", "a\0b", "--task", "a", "--prompt", "b"],
        ["generate", "a", "--task", "a", "--prompt-file", "b\0"],
        ["plan", "quickstart", "--model", "a\0b"],
        ["plan", "quickstart", "--measure-layers", "1000000000"],
        ["plan", "quickstart", "--devices", "9" * 40],
        ["finetune", "quickstart", "--threads", "1000000000"],
    ],
)
def test_an_absurd_option_is_one_message(crma, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = crma(arguments)
    assert code == 2
    assert error.startswith("crma: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_lack_of_threads_is_called_so(crma, monkeypatch):
    def refuse(error):
        def none_left(*_):
            raise error

        monkeypatch.setattr("backends.finetune.training.finetune.show_report", none_left)
        return crma(["report", "x"])

    for error in (RuntimeError("can't start new thread"), BlockingIOError(11, "Resource temporarily unavailable")):
        code, _, message = refuse(error)
        assert code == 2
        assert "threads" in message
        assert "ulimit -u" in message
    with pytest.raises(RuntimeError, match="another"):
        refuse(RuntimeError("another"))
