"""TensorBoard logs, read back with TensorBoard's own reader."""

import sys

import numpy as np
import pytest

from backends.finetune.training.tensorboard import TensorBoardLog
from reference.errors import MissingPackageError

pytest.importorskip("torch")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def points(folder):
    """Tag -> [(step, value)], as TensorBoard shows them."""
    reader = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.fixture
def losses():
    return np.random.default_rng(0).uniform(1, 3, 12)


def start(folder, global_step=0, condition="modular"):
    log = TensorBoardLog(folder)
    log.start(0, condition, global_step)
    return log


def write_steps(log, first, last, losses):
    for step in range(first, last + 1):
        log.step(step, losses[step], {"lora": 2 * losses[step]}, 100.0)


def test_every_point_is_there_once_with_its_value(tmp_path, losses):
    log = TensorBoardLog(tmp_path)
    log.start(3, "modular@0.002", 0)
    write_steps(log, 1, 4, losses)
    log.spectrum(4, {"norm_max": 1 + 2e-7, "adapter_min": 0.75, "displacement_max": None})
    log.holdout(0, {"Médical": 1.5})
    log.start(3, "modular@0.002", 4)  # the next phase of the same session goes on in the same file
    assert len(list((tmp_path / "3-modular@0.002").iterdir())) == 1
    write_steps(log, 5, 8, losses)
    log.holdout(1, {"Médical": 1.25, "a/b": 2.5})
    log.start(3, "naive", 0)
    write_steps(log, 1, 2, losses)
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


def test_a_resumed_run_neither_repeats_nor_loses_a_point(tmp_path, losses):
    killed = start(tmp_path)  # never closed: what was said is on the disk all the same
    write_steps(killed, 1, 7, losses + 10)
    resumed = start(tmp_path, 4)  # the checkpoint was at step 4
    write_steps(resumed, 5, 11, losses)
    resumed.close()
    expected = [(step, pytest.approx(losses[step] + (10 if step <= 4 else 0))) for step in range(1, 12)]
    assert points(tmp_path / "0-modular")["loss/train"] == expected


def test_a_phase_that_ended_before_its_record_was_written_keeps_its_holdout_losses_once(tmp_path, losses):
    log = start(tmp_path)
    write_steps(log, 1, 4, losses)
    log.holdout(0, {"A": 1.5})
    for _ in range(2):
        log = start(tmp_path, 4)
        log.holdout(0, {"A": 1.5, "B": 2.5})
    write_steps(log, 5, 8, losses)
    log.holdout(1, {"A": 1.25})
    log.close()
    found = points(tmp_path / "0-modular")
    assert found["holdout/A"] == [(4, 1.5), (8, 1.25)]
    assert found["holdout/B"] == [(4, 2.5)]
    assert [step for step, _ in found["loss/train"]] == list(range(1, 9))


def test_a_run_that_starts_anew_replaces_the_old_log(tmp_path, losses):
    for last in (6, 3):
        log = start(tmp_path, condition="naive")
        write_steps(log, 1, last, losses + last)
        log.close()
    assert points(tmp_path / "0-naive")["loss/train"] == [(step, pytest.approx(losses[step] + 3)) for step in (1, 2, 3)]


def test_a_record_cut_short_by_a_crash_costs_only_itself(tmp_path, losses):
    log = start(tmp_path)
    write_steps(log, 1, 4, losses)
    log.close()
    (file,) = (tmp_path / "0-modular").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log.start(0, "modular", 3)
    write_steps(log, 4, 5, losses)
    log.close()
    assert [step for step, _ in points(tmp_path / "0-modular")["loss/train"]] == [1, 2, 3, 4, 5]


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"crma\[tensorboard\]"):
        TensorBoardLog(tmp_path)
