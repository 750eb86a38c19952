"""Whole runs on a tiny model: what the conditions promise, and that no interruption changes a bit."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from backends.atomic import atomic_write
from backends.finetune.conftest import adapters, measured
from backends.finetune.engines.tests.faults import spoil
from backends.finetune.runs.results import read_results

torch = pytest.importorskip("torch")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_command):
    """One whole run, which the tests compare others with."""
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_command(folder)) == 0
    return folder


def test_another_seed_gives_other_bits_and_may_join_the_folder(finished, tmp_path, crma, finetune_command):
    shutil.copytree(finished, tmp_path / "run")
    code, _, _ = crma(finetune_command(tmp_path / "run", "--seeds", "0", "7", "--conditions", "frozen"))
    assert code == 0
    results = read_results(tmp_path / "run")
    assert results.complete_seeds("frozen") == [0, 7]
    assert not np.array_equal(results.holdout_matrix("frozen", 0), results.holdout_matrix("frozen", 7), equal_nan=True)
    assert {k: v for k, v in adapters(tmp_path / "run").items() if k.startswith("0-")} == adapters(finished)


@pytest.mark.parametrize("call", [6, 17, *(pytest.param(more, marks=pytest.mark.slow) for more in (1, 11, 30))])
def test_a_full_disk_at_any_write_is_named_and_nothing_is_lost(
    finished, tmp_path, crma, finetune_command, monkeypatch, call
):
    """``call``: the first fsync that fails; checkpoints, adapters, states and results all end in one."""
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    code, _, error = crma(finetune_command(tmp_path / "run"))
    assert code == 2
    assert "Traceback" not in error
    assert "free some space" in error
    assert not list((tmp_path / "run").rglob("*.tmp"))
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)
    assert measured(tmp_path / "run") == measured(finished)


def test_killed_after_the_last_record_leaves_no_checkpoint(finished, tmp_path, crma, finetune_command, monkeypatch):
    """The checkpoint of the last phase is removed last; whoever resumes removes it."""
    unlink, calls = Path.unlink, []

    def interrupted(self, missing_ok=False):
        if self.name == "checkpoint.safetensors":
            calls.append(self)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130
    monkeypatch.undo()
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


@pytest.mark.parametrize("call", [1, 2])
def test_killed_while_a_folder_without_work_is_claimed_again_leaves_it_ours(
    finished, tmp_path, crma, finetune_command, monkeypatch, call
):
    spoil("torch", "interrupted 1", monkeypatch.setattr)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130  # claimed, and nothing trained
    monkeypatch.undo()
    calls = []

    def interrupted_later(path, data):
        calls.append(path)
        if len(calls) == call:
            raise KeyboardInterrupt
        atomic_write(path, data)

    monkeypatch.setattr("backends.finetune.runs.run_folder.atomic_write", interrupted_later)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)
