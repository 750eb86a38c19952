"""TensorBoard logs, read back with TensorBoard's own reader."""

import builtins
import sys

import numpy as np
import pytest

from backends.finetune.training.tensorboard import NO_LOG, TensorBoardLog
from reference.errors import MissingPackageError

pytest.importorskip("torch")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def points(folder):
    """Tag -> [(step, value)], as TensorBoard shows them."""
    reader = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def write_steps(log, first, last, losses, seed=0, condition="modular"):
    for step in range(first, last + 1):
        log.step(seed, condition, step, losses[step], {"lora": 2 * losses[step]}, 100.0)


def test_every_point_is_there_once_with_its_value(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 3, 9)
    log = TensorBoardLog(tmp_path)
    log.start(3, "modular@0.002", 0)
    write_steps(log, 1, 4, losses, 3, "modular@0.002")
    log.spectrum(3, "modular@0.002", 4, {"norm_max": 1 + 2e-7, "adapter_min": 0.75, "displacement_max": None})
    log.holdout(3, "modular@0.002", 0, {"Médical": 1.5})
    log.start(3, "modular@0.002", 4)  # the next phase of the same session goes on in the same file
    assert len(list((tmp_path / "3-modular@0.002").iterdir())) == 1
    write_steps(log, 5, 8, losses, 3, "modular@0.002")
    log.holdout(3, "modular@0.002", 1, {"Médical": 1.25, "a/b": 2.5})
    log.start(3, "naive", 0)
    write_steps(log, 1, 2, losses, 3, "naive")
    log.close()
    found = points(tmp_path / "3-modular@0.002")
    assert found["loss/train"] == [(step, pytest.approx(losses[step])) for step in range(1, 9)]
    assert found["gradient_norm/lora"] == [(step, pytest.approx(2 * losses[step])) for step in range(1, 9)]
    assert [step for step, _ in found["speed/tokens_per_second"]] == list(range(1, 9))
    assert found["spectrum/norm_max_minus_1"] == [(4, pytest.approx(2e-7, rel=1e-6))]
    assert found["spectrum/adapter_min"] == [(4, 0.75)]
    assert "spectrum/displacement_max" not in found
    assert found["holdout/Médical"] == [(4, 1.5), (8, 1.25)]
    assert found["holdout/a/b"] == [(8, 2.5)]
    assert [step for step, _ in points(tmp_path / "3-naive")["loss/train"]] == [1, 2]


def test_a_resumed_run_neither_repeats_nor_loses_a_point(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 3, 12)
    killed = TensorBoardLog(tmp_path)  # never closed: what was said is on the disk all the same
    killed.start(0, "modular", 0)
    write_steps(killed, 1, 7, losses + 10)
    resumed = TensorBoardLog(tmp_path)
    resumed.start(0, "modular", 4)  # the checkpoint was at step 4
    write_steps(resumed, 5, 11, losses)
    resumed.close()
    expected = [(step, pytest.approx(losses[step] + (10 if step <= 4 else 0))) for step in range(1, 12)]
    assert points(tmp_path / "0-modular")["loss/train"] == expected


def test_a_phase_that_ended_before_its_record_was_written_keeps_its_holdout_losses_once(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 3, 9)
    log = TensorBoardLog(tmp_path)
    log.start(0, "modular", 0)
    write_steps(log, 1, 4, losses)
    log.holdout(0, "modular", 0, {"A": 1.5})
    for _ in range(2):
        log = TensorBoardLog(tmp_path)
        log.start(0, "modular", 4)
        log.holdout(0, "modular", 0, {"A": 1.5, "B": 2.5})
    write_steps(log, 5, 8, losses)
    log.holdout(0, "modular", 1, {"A": 1.25})
    log.close()
    found = points(tmp_path / "0-modular")
    assert found["holdout/A"] == [(4, 1.5), (8, 1.25)]
    assert found["holdout/B"] == [(4, 2.5)]
    assert [step for step, _ in found["loss/train"]] == list(range(1, 9))


def test_a_run_that_starts_anew_replaces_the_old_log(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 3, 9)
    for last in (6, 3):
        log = TensorBoardLog(tmp_path)
        log.start(0, "naive", 0)
        write_steps(log, 1, last, losses + last, 0, "naive")
        log.close()
    assert points(tmp_path / "0-naive")["loss/train"] == [(step, pytest.approx(losses[step] + 3)) for step in (1, 2, 3)]


def test_a_record_cut_short_by_a_crash_costs_only_itself(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 3, 9)
    log = TensorBoardLog(tmp_path)
    log.start(0, "modular", 0)
    write_steps(log, 1, 4, losses)
    log.close()
    (file,) = (tmp_path / "0-modular").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log.start(0, "modular", 3)
    write_steps(log, 4, 5, losses)
    log.close()
    assert [step for step, _ in points(tmp_path / "0-modular")["loss/train"]] == [1, 2, 3, 4, 5]


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    genuine = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return genuine(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"crma\[tensorboard\]"):
        TensorBoardLog(tmp_path)


def test_no_log_takes_everything_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NO_LOG.start(0, "naive", 0)
    NO_LOG.step(0, "naive", 1, 1.0, {}, 1.0)
    NO_LOG.spectrum(0, "naive", 1, {})
    NO_LOG.holdout(0, "naive", 0, {})
    NO_LOG.close()
    assert list(tmp_path.iterdir()) == []
