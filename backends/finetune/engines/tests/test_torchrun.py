"""Two processes of torchrun (gloo, CPU) train what one trains, write it once, and never hang.

A command of two processes takes ten to twenty seconds here, so one of them serves several tests.
"""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
torch_distributed = pytest.importorskip("torch.distributed")
if not torch_distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

from safetensors.numpy import load_file

from backends.finetune.conftest import Arguments, adapters, measured, results_lines
from backends.finetune.engines.tests.faults import torchrun_with
from backends.finetune.engines.tests.processes import TIME_LIMIT, Ended, end, family, start, torchrun
from backends.finetune.engines.torch import engine as torch_engine
from backends.finetune.engines.torch.world import TorchWorld
from backends.finetune.engines.world import SINGLE, World
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.runs.run_folder import RunFolder
from conformance.compare import assert_close
from conformance.tolerances import Tolerance
from reference.errors import BackendError

#: Relative, and absolute as a part of the largest value. Of losses and norms seen were up to 6e-6; of adapters 9e-6;
#: and 8e-4 of a LoRA that is trained on, since a new Adam divides each gradient by itself, be it little but rounding.
#: The norms of its gradients, taken at a LoRA that may differ so, differed by 6e-6 on a processor with AVX-512 and by
#: 2e-5 on one with AVX2. That the same sums give the same bits on any processor is a test of its own below.
TOLERANCE, ADAPTER_TOLERANCE, TRAINED_ON_TOLERANCE = 1e-5, 5e-5, 4e-3
#: 9 rows in batches of 3, two of which make a step: no batch divides by 2
SETTINGS = ("--set", "accumulation=2", "--set", "transfer=true", "--set", "panel=1")
BY_GRADIENTS = ("naive", "frozen", "modular", "lwf")  # what two processes add up for them is gradients alone
CONDITIONS = (*BY_GRADIENTS, "modular@data-0.003")
CONTROLS = ("frozen-raised", "modular-unconstrained", "modular-pinned", "modular-still")
MORE_CONDITIONS = ("replay", "ewc", "o-lora", *CONTROLS)


def in_one_process(arguments: list[str]) -> None:
    from backends.finetune.cli import main

    assert main(arguments) == 0


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """With them: every file of one process is compared with those of two."""


@pytest.fixture(scope="module")
def arguments(tiny_command: Arguments) -> Arguments:
    """Arguments of a tiny run into ``out``."""

    def of_run(out: Path, *more: str, conditions: tuple[str, ...] = CONDITIONS) -> list[str]:
        return tiny_command(out, *SETTINGS, *more, "--conditions", *conditions)

    return of_run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
    """The run in one process that the others are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    in_one_process(arguments(folder))
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> tuple[Path, Ended]:
    """The same run in two processes."""
    folder = tmp_path_factory.mktemp("together") / "run"
    return folder, torchrun(arguments(folder))


def assert_same_training(actual: Path, expected: Path, conditions: tuple[str, ...] = ()) -> None:
    """Losses, gradient norms, holdout matrix and every adapter of ``conditions`` (all), by the project's formula."""
    mine = measured(actual)
    theirs = [phase for phase in measured(expected) if not conditions or phase["condition"] in conditions]
    assert len(mine) == len(theirs) > 0
    for a, e in zip(mine, theirs, strict=True):
        context = f"{e['condition']}, phase {e['phase']}"
        assert [a[key] for key in ("condition", "phase", "tokens", "parameters")] == [
            e[key] for key in ("condition", "phase", "tokens", "parameters")
        ]
        assert a["holdout"].keys() == e["holdout"].keys()
        assert_near(a["losses"], e["losses"], f"losses of {context}")
        assert_near(list(a["holdout"].values()), list(e["holdout"].values()), f"holdout of {context}")
        assert_near(a["before"], e["before"], f"before {context}")
        trained_on = parse_condition(e["condition"]).trains == "shared" and e["phase"] > 0
        part = ADAPTER_TOLERANCE if trained_on else TOLERANCE
        assert a["gradient_norms"].keys() == e["gradient_norms"].keys()
        for name, norms in e["gradient_norms"].items():
            assert_near(a["gradient_norms"][name], norms, f"norms of {name}, {context}", part)
    branches = {RunFolder(expected).branch(e["seed"], e["condition"]) for e in theirs}
    names = {path.relative_to(expected) for branch in branches for path in branch.rglob("*.safetensors")}
    assert {path.relative_to(actual) for path in actual.rglob("*.safetensors")} == names
    for name in names:
        ours, reference = load_file(actual / name), load_file(expected / name)
        assert ours.keys() == reference.keys()
        for key, value in reference.items():
            condition = parse_condition(name.parts[0].partition("-")[2])
            anew = condition.trains != "shared" or name.parts[1] == "task-0"
            assert_near(ours[key], value, f"{name}, {key}", ADAPTER_TOLERANCE if anew else TRAINED_ON_TOLERANCE)


def assert_near(actual: Any, expected: Any, context: str, part: float = TOLERANCE) -> None:
    e = np.asarray(expected)
    largest = float(np.abs(e).max())
    tolerance = Tolerance("float32", ulps=0, rtol=part, atol=part * largest, reason=context)
    assert_close(actual, expected, tolerance, clause="CL-1", context=context)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in results_lines(run) if line["kind"] == kind]


def test_two_processes_train_what_one_trains(alone, together):
    folder, ended = together
    assert ended.code == 0, ended.error
    assert_same_training(folder, alone)
    (base,), (one,) = records(folder, "base"), records(alone, "base")
    assert_near(list(base["holdout"].values()), list(one["holdout"].values()), "base")
    assert measured(folder)[0]["losses"] != measured(alone)[0]["losses"]  # other sums: it did run in two processes


def test_the_same_sums_in_one_process_give_the_same_bits(together, tmp_path, arguments, monkeypatch):
    """Each process's share of the rows in turn, its gradients kept apart until the step."""
    backward = torch_engine.TorchEngine._backward
    gradients: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})

    class Share(World):
        size = 2

    def by_shares(self, batch, answer_tokens):
        parameters = [parameter for group in self._groups().values() for parameter in group]
        loss: Any = 0.0
        for rank, own in enumerate(gradients):
            for parameter in parameters:
                parameter.grad = own.get(parameter)
            self.world = Share()
            self.world.rank = rank
            loss += backward(self, batch, answer_tokens)
            own.update({parameter: parameter.grad for parameter in parameters})
        self.world = SINGLE
        return loss

    def add_up(world, parameters):
        first, second = gradients
        for parameter in parameters:
            parameter.grad = None if first[parameter] is None else first[parameter] + second[parameter]
        first.clear()
        second.clear()

    monkeypatch.setattr(torch_engine.TorchEngine, "_backward", by_shares)
    monkeypatch.setattr(torch_engine, "sum_gradients", add_up)
    in_one_process(arguments(tmp_path / "run", conditions=BY_GRADIENTS))
    theirs = {name: content for name, content in adapters(together[0]).items() if "@data" not in name}
    assert adapters(tmp_path / "run") == theirs
    phases = [phase for phase in measured(together[0]) if phase["condition"] in BY_GRADIENTS]
    for a, e in zip(measured(tmp_path / "run"), phases, strict=True):
        np.testing.assert_allclose(a["losses"], e["losses"], rtol=1e-14)
        assert a["gradient_norms"] == e["gradient_norms"]


def test_of_two_processes_one_writes_and_speaks(alone, together):
    folder, ended = together
    files = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (folder, alone)]
    assert files[0] == files[1]
    for kind, count in (("run", 1), ("base", 1), ("phase", 3 * len(CONDITIONS)), ("panel", 2)):
        assert len(records(folder, kind)) == count
    assert ended.output.count("report.html") == 1
    assert records(folder, "panel") == records(alone, "panel")


def test_two_processes_end_without_a_complaint(together):
    _, ended = together
    assert "destroy_process_group" not in ended.error
    assert "Traceback" not in ended.error
    assert "arning" not in ended.error


@pytest.mark.slow
def test_a_base_model_spread_over_two_processes_trains_the_same(alone, tmp_path, arguments):
    ended = torchrun(arguments(tmp_path / "run", "--shard", conditions=("naive", "modular")))
    assert ended.code == 0, ended.error
    assert_same_training(tmp_path / "run", alone, ("naive", "modular"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--shard",), ("--set", "packing=true")], ids=["whole", "sharded", "packed"])
def test_the_other_conditions_train_the_same_in_two_processes(tmp_path, arguments, more):
    conditions = MORE_CONDITIONS if more else (*MORE_CONDITIONS, "full")
    in_one_process(arguments(tmp_path / "alone", *(more if "--shard" not in more else ()), conditions=conditions))
    ended = torchrun(arguments(tmp_path / "run", *more, conditions=conditions))
    assert ended.code == 0, ended.error
    assert_same_training(tmp_path / "run", tmp_path / "alone")


SPREAD = """
import copy, sys
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from backends.finetune.protocols.protocol import LoraSection
from backends.finetune.engines.torch.lora import LoraSlot
from backends.finetune.engines.torch.world import TorchWorld, shard_base
from backends.torch.decoder import find_decoder

world = TorchWorld("cpu")
base = AutoModelForCausalLM.from_pretrained(sys.argv[1]).requires_grad_(False)
slot = LoraSlot(base, LoraSection(rank=2))
slot.draw(0)
ids = torch.arange(6)[None] + world.rank
expected = copy.deepcopy(slot.model)(input_ids=ids).logits
trainables = set(slot.parameters().values())
whole = sum(p.numel() for p in slot.model.parameters() if p not in trainables)
shard_base(slot.model, find_decoder(base).blocks, trainables)
spread = [p for p in slot.model.parameters() if isinstance(p, DTensor)]
local = sum(p.to_local().numel() for p in spread)
assert sum(p.numel() for p in spread) == whole, "every parameter of the base model is spread"
assert 0.45 * whole < local < 0.55 * whole, (local, whole)
assert not any(isinstance(p, DTensor) for p in slot.parameters().values())
logits = slot.model(input_ids=ids).logits
assert torch.equal(logits, expected), (logits - expected).abs().max()
logits.square().sum().backward()
assert all(p.grad is not None and not isinstance(p.grad, DTensor) for p in slot.parameters().values())
local = sum(p.to_local().numel() for p in slot.model.parameters() if isinstance(p, DTensor))
assert 0.45 * whole < local < 0.55 * whole, "and is spread again behind the backward pass"
dist.destroy_process_group()
print("spread", end=" ")
"""


def test_each_of_two_processes_holds_half_of_a_sharded_base_model(tmp_path, tiny_model):
    (tmp_path / "spread.py").write_text(SPREAD)
    ended = torchrun([str(tiny_model)], (str(tmp_path / "spread.py"),))
    assert ended.code == 0, ended.error
    assert ended.output.count("spread") == 2


def resumes_to(expected: Path, run: Path, command: list[str]) -> None:
    ended = torchrun(command)
    assert ended.code == 0, ended.error
    assert adapters(run) == adapters(expected)
    assert measured(run) == measured(expected)


@pytest.mark.slow
def test_one_process_killed_ends_the_command_which_goes_on_to_the_same_bits(together, tmp_path, arguments):
    ended = torchrun_with("killed 9 in 1", arguments(tmp_path / "run"))
    assert ended.code != 0
    assert "SIGKILL" in ended.error
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    resumes_to(together[0], tmp_path / "run", arguments(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("phases", [1, 5, 11])
def test_all_processes_killed_and_resumed_give_the_same_bits(together, tmp_path, arguments, phases):
    process = start(arguments(tmp_path / "run"))
    results, started = tmp_path / "run" / "results.jsonl", time.monotonic()
    while not results.exists() or results.read_text().count('"kind": "phase"') < phases:
        assert process.poll() is None
        assert time.monotonic() - started < TIME_LIMIT
        time.sleep(0.02)
    for member in family(process):
        member.kill()
    assert end(process).code == -signal.SIGKILL
    assert len(measured(tmp_path / "run")) < 3 * len(CONDITIONS)
    resumes_to(together[0], tmp_path / "run", arguments(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"), [("out-of-memory 9 in 1", "got out of memory"), ("nan-loss 9 in 1", "step 3: got loss nan")]
)
def test_an_error_in_one_process_ends_the_others(together, tmp_path, arguments, fault, message):
    ended = torchrun_with(fault, arguments(tmp_path / "run"))
    assert ended.code != 0
    assert message in ended.error, ended.error
    assert "backends/finetune/cli/program.py" not in ended.error  # no traceback of ours; torchrun adds its own
    assert not records(tmp_path / "run", "phase")[1:]
    resumes_to(together[0], tmp_path / "run", arguments(tmp_path / "run"))


def test_a_run_folder_in_use_is_refused_by_all_processes(tmp_path, arguments):
    with RunFolder(tmp_path / "run").locked():
        ended = torchrun(arguments(tmp_path / "run"))
    assert ended.code != 0
    assert "got a folder that another process is working in" in ended.error
    assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard",), "--shard: got a single process"),
        (("--shard", "--conditions", "naive", "full"), "conditions: got full with --shard"),
        (("--shard", "--set", "quantization=4bit"), "quantization: got '4bit' with --shard"),
        (("--conditions", "full", "--set", "quantization=4bit"), "conditions: got full with quantization '4bit'"),
        (("--backend", "jax-cpu", "--shard"), "--shard: got with jax-cpu"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(refused_run, more, message):
    if "jax-cpu" in more:
        pytest.importorskip("jax")
    assert message in refused_run(*more)


def test_jax_under_torchrun_is_refused(refused_run, monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun: got 2 processes with jax-cpu" in refused_run("--backend", "jax-cpu")


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR"])
def test_half_an_environment_of_torchrun_is_one_clear_error(refused_run, monkeypatch, missing):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    error = refused_run()
    assert "torchrun: got" in error
    assert missing in error


def test_a_lost_process_is_a_clear_error_and_any_other_error_itself():
    world = object.__new__(TorchWorld)
    world.rank, world.size = 1, 2
    lost = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
    with pytest.raises(BackendError, match="torchrun, process 1: got another process that has ended"), world.joined():
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="shapes"), world.joined():
        raise RuntimeError("shapes do not fit")


DIFFERENT = """
import os, shutil, sys, time
from backends.finetune.engines.torch import world as torch_world
from backends.finetune.cli import main
arguments = sys.argv[1:]
torch_world.AGREE_SECONDS = 20
if os.environ["RANK"] == "1":
    {change}
sys.exit(main(arguments))
"""
ANOTHER_TEXT = """
    task = arguments.index("--task") + 1
    name, _, files = arguments[task].partition("=")
    train, _, holdout = files.partition(":")
    other = train.replace(".jsonl", "-other.jsonl")
    shutil.copy(train, other)
    with open(other, "a") as file:
        file.write('{"prompt": "say 77:", "response": " something else"}\\n')
    arguments[task] = f"{name}={other}:{holdout}"
"""
ANOTHER_MODEL = """
    protocol = open(arguments[1]).read()
    model = protocol.split('model = "')[1].split('"')[0]
    shutil.copytree(model, model + "-other")
    tokenizer = model + "-other/tokenizer.json"
    text = open(tokenizer).read()
    open(tokenizer, "w").write(text.replace('"a"', '"b"', 1).replace('"b"', '"a"', 1) + " ")
    arguments += ["--model", model + "-other"]
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(ANOTHER_TEXT, "process 1 with another data than process 0", id="data"),
        pytest.param(ANOTHER_MODEL, "process 1 with another model than process 0", id="model", marks=pytest.mark.slow),
        pytest.param(
            'arguments += ["--set", "lora.learning_rate=0.5"]', "with another protocol", id="protocol",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "torch_world.TorchWorld.agree = lambda *_: time.sleep(90)", "does not answer", id="silence",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_processes_that_were_given_different_work_do_not_start(tmp_path, arguments, change, message):
    program = tmp_path / "different.py"
    program.write_text(DIFFERENT.replace("{change}", change.strip()))
    ended = torchrun(arguments(tmp_path / "run", conditions=("frozen",)), (str(program),))
    assert ended.code != 0
    assert message in ended.error, ended.error
    assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.mark.parametrize("backend", ["torch-cpu", "jax-cpu"])
@pytest.mark.parametrize("size", ["two", "", "0"])
def test_a_number_of_processes_that_is_none_is_named(backend, size, monkeypatch):
    from backends.finetune.engines.by_name import engine_factory

    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(BackendError, match="WORLD_SIZE: got"):
        engine_factory(backend)
