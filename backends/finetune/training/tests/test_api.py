"""The Python API of fine-tuning: what the command does, as one function."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from backends.finetune import finetune, read_results, read_task
from backends.finetune.conftest import adapters, measured, tiny_protocol
from reference.errors import ProtocolError


@pytest.fixture
def tasks(tiny_tasks):
    named = (option.partition("=")[::2] for option in tiny_tasks)
    return [read_task(name, *paths.rsplit(":", 1)) for name, paths in named]


def test_a_run_from_python_is_that_of_the_command(tiny_model, tasks, tmp_path, crma, finetune_command, capfd):
    protocol, out = str(tiny_protocol(tmp_path, tiny_model)), tmp_path / "by-python"
    results = finetune(protocol, tasks, tiny_model, out, conditions=["modular"], threads=1, quiet=True)
    assert not capfd.readouterr().out
    assert results.tasks == [task.name for task in tasks]
    assert results.complete_seeds("modular") == list(results.seeds)
    assert crma(finetune_command(tmp_path / "by-command", "--conditions", "modular", "--threads", "1"))[0] == 0
    assert adapters(out) == adapters(tmp_path / "by-command")
    assert measured(out) == measured(tmp_path / "by-command")
    assert read_results(out).run.conditions == results.run.conditions == ["modular"]


def test_a_mistake_is_an_error_before_anything_is_written(tiny_model, tasks, tmp_path):
    protocol = str(tiny_protocol(tmp_path, tiny_model))
    with pytest.raises(ProtocolError, match="conditions"):
        finetune(protocol, tasks, tiny_model, tmp_path / "run", conditions=["magic"])
    assert not (tmp_path / "run").exists()


def test_the_names_need_no_framework_and_others_are_refused():
    code = (
        "import sys, backends.finetune as f\n"
        "assert f.read_results and f.read_task and f.RunResults\n"
        "assert not {'torch', 'jax', 'transformers'} & set(sys.modules)\n"
        "try: f.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no attribute 'nothing'" in done.stdout
