"""What `mixed` becomes on a processor without instructions for bfloat16, and that it is said and recorded."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="pip install 'crma[finetune]'")

from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.runs.results import read_results
from backends.finetune.training import precision
from backends.finetune.training.precision import on_this_processor


@pytest.fixture(params=[False, True], ids=["without", "with"])
def has_instructions(request, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("given", "backend", "settings", "becomes", "is_slow"),
    [
        ("mixed", "torch-cpu", ["epochs=1"], "float32", True),
        ("mixed", "torch-cpu", [" precision = mixed"], "mixed", True),
        ("bfloat16", "torch-cpu", [], "bfloat16", True),
        ("float32", "torch-cpu", [], "float32", False),
        ("mixed", "torch-cuda", [], "mixed", False),
        ("mixed", "jax-cpu", [], "mixed", False),
    ],
)
def test_which_precision_is_computed(has_instructions, given, backend, settings, becomes, is_slow):
    protocol = load_protocol("quickstart", precision=given)
    found, said = on_this_processor(protocol, backend, settings)
    assert found == protocol.model_copy(update={"precision": given if has_instructions else becomes})
    assert bool(said) == (is_slow and not has_instructions)


def test_a_run_says_and_records_the_precision_that_it_computes_in(has_instructions, finetune_command, crma, tmp_path):
    arguments = finetune_command(tmp_path / "run", "--conditions", "frozen")
    protocol = Path(arguments[1])
    protocol.write_text('precision = "mixed"\n' + protocol.read_text())
    code, out, _ = crma(arguments)
    assert code == 0
    assert ("no instructions for bfloat16, so precision=float32" in out) == (not has_instructions)
    of_run = json.loads((tmp_path / "run" / "run.json").read_text())["protocol"]["precision"]
    assert (
        of_run == read_results(tmp_path / "run").run.config["precision"] == "mixed" if has_instructions else "float32"
    )
    code, out, _ = crma(["plan", *arguments[1:2], *arguments[arguments.index("--task") : -2]])
    assert code == 0
    assert ("no instructions for bfloat16" in out) == (not has_instructions)


def test_a_run_that_was_begun_elsewhere_is_not_mixed_up(finetune_command, crma, tmp_path, monkeypatch):
    """What another processor began in bfloat16 goes on in it if that is asked for, and in nothing else."""
    arguments = finetune_command(tmp_path / "run", "--conditions", "frozen")
    protocol = Path(arguments[1])
    protocol.write_text('precision = "mixed"\n' + protocol.read_text())
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert crma(arguments)[0] == 0
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    code, _, message = crma(arguments)
    assert code == 2
    assert "precision" in message
    code, out, _ = crma([*arguments, "--set", "precision=mixed"])
    assert code == 0
    assert "may take ten times as long" in " ".join(out.split())
