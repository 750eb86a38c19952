"""Every condition through a whole run of a tiny model: drift, budgets, sizes, and resuming to the same bits."""

import gc
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backends.finetune.conftest import Arguments, adapters, measured, write_tasks
from backends.finetune.engines.tests.faults import spoil
from backends.finetune.methods.conditions import KNOWN, parse_condition
from backends.finetune.runs.results import read_results
from backends.finetune.runs.run_folder import RunFolder

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from backends.torch import load_state
from backends.torch.certificates import displacement

CONDITIONS = (*KNOWN, "modular@0.01", "modular@none", "modular-inherit@data-0.003", "modular-inherit@still-0.01")
SETTINGS = ("--set", "transfer=true", "--set", "accumulation=2", "--set", "decision=1")


@pytest.fixture(scope="module")
def arguments(tiny_command: Arguments) -> Arguments:
    return lambda out, *conditions: tiny_command(out, *SETTINGS, "--conditions", *conditions)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("conditions") / "run"
    assert main(arguments(folder, *CONDITIONS)) == 0
    return folder


def of_conditions(run: Path, names: tuple[str, ...]) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    files = {path: content for path, content in adapters(run).items() if path.partition("/")[0][2:] in names}
    phases = [phase for phase in measured(run) if phase["condition"] in names]
    return files, sorted(phases, key=lambda phase: (phase["condition"], phase["phase"]))


@pytest.mark.clause("CL-5")
def test_what_never_drifts_drifts_by_exactly_zero_and_the_others_do_drift(finished):
    results = read_results(finished)
    for name in CONDITIONS:
        metrics = results.metrics(name, 0)
        assert metrics is not None
        if parse_condition(name).never_drifts:
            assert (metrics.drift_per_task == 0.0).all(), name
        elif not parse_condition(name).ratchet and parse_condition(name).answers == "own":  # no domain comes again here
            assert (metrics.drift_per_task != 0.0).any(), name
    zero = {name for name in CONDITIONS if parse_condition(name).never_drifts}
    frozen = {name for name in CONDITIONS if name.startswith("frozen")} - {"frozen-newest"}
    assert zero == frozen | {"modular-still", "modular-pinned", "modular-fresh"}


@pytest.mark.clause("DATA-3")
def test_a_protocols_data_budget_is_that_of_a_condition_without_its_own(finished, arguments, tmp_path):
    """To the bit; the conditions that have one of their own, or no CRMA that goes on, stay what they are."""
    from backends.finetune.cli import main

    named, plain, still = "modular-inherit@data-0.003", "modular-inherit", "modular-still"
    assert main([*arguments(tmp_path / "run", plain, still), "--set", "crma.data_budget=0.003"]) == 0
    there, of_still = (of_conditions(tmp_path / "run", (name,))[0] for name in (plain, still))
    assert {path.replace(plain, named): data for path, data in there.items()} == of_conditions(finished, (named,))[0]
    assert of_still == of_conditions(finished, (still,))[0]
    assert main(["certify", str(tmp_path / "run")]) == 0


def test_without_a_budget_the_shared_crma_goes_further(finished):
    files = [RunFolder(finished).crma(0, "modular@none", phase) for phase in (0, 2)]
    first, last = (load_state(file).state for file in files)
    assert displacement(first, last, 20).max() > 0.05


@pytest.mark.parametrize(
    "name",
    [
        "modular",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ewc", "o-lora", "naive", "modular-pinned", "lwf")),
    ],
)
def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path, finetune_command, monkeypatch, name):
    """Bytes of all live tensors after each of six tasks; only O-LoRA's earlier LoRAs all take part, and add up."""
    from backends.finetune.cli import main
    from backends.finetune.engines.torch.engine import TorchEngine

    def live(engine: TorchEngine) -> int:
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return sum(storages.values())

    monkeypatch.setattr(TorchEngine, "memory_bytes", live)
    tasks = write_tasks(tmp_path, {f"task {letter}": letter for letter in "abcdef"})
    assert main(finetune_command(tmp_path / "run", "--conditions", name, tasks=tasks)) == 0
    found = [phase.memory_bytes or 0 for phase in read_results(tmp_path / "run").phases_of(name, 0)]
    growth = [later - earlier for earlier, later in pairwise(found[1:])]  # the first task has no anchor or teacher yet
    parameters = read_results(tmp_path / "run").parameters(name)
    assert growth == [4 * parameters["lora"] if name == "o-lora" else 0] * 4


RESUMED = [
    ("replay", "lwf"),
    ("ewc", "o-lora"),
    ("full", "modular-unconstrained"),
    ("modular-pinned", "modular-still"),
    ("frozen-raised", "modular@0.01"),
    ("modular-inherit@data-0.003", "modular-inherit@still-0.01"),
]


@pytest.mark.parametrize("names", RESUMED, ids="+".join)
def test_interrupted_anywhere_and_resumed_gives_the_same_bits(finished, tmp_path, arguments, capfd, names):
    """In a step, an evaluation, the Fisher information, a write or a rename; several times in one run."""
    from backends.finetune.cli import main

    code, counts = 130, []
    while code == 130:
        counts.append(random.Random().randrange(5, 90))
        with pytest.MonkeyPatch.context() as patch:
            spoil("torch", f"interrupted-anywhere {counts[-1]}", patch.setattr)
            code = main(arguments(tmp_path / "run", *names))
    assert code == 0, (capfd.readouterr().err, counts)
    assert len(counts) > 1
    assert of_conditions(tmp_path / "run", names) == of_conditions(finished, names), counts
    # What only unfinished phases need is gone, wherever it was interrupted
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.safetensors")}
    assert left == set(of_conditions(finished, names)[0])
    assert not any("checkpoint" in name for name in left)
