"""The measurement on a tiny model, in seconds: every figure is there and of the right order."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from backends.finetune.conftest import tiny_model
from bench import inference

__all__ = ["tiny_model"]


def test_every_figure_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ["--adapters", "1", "3", "--rounds", "2", "--swaps", "4", "--tokens", "16", "--decode", "3"]
    assert inference.main(["--model", str(tiny_model), *small, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["files"]["lora_bytes_per_task"] > 4 * 8 * 2 * 7 * 16  # rank 8, two layers of seven matrices, float32
    assert found["files"]["crma_bytes"] > 4 * 2 * 16 * 16  # two layers of 16 directions
    assert set(found["swap_seconds"]) == {
        "to the bare model or back",
        "resident, 3 in memory",
        "first use, while 3 come into memory",
        "from the file, 1 in memory",
    }
    assert found["swap_seconds"]["from the file, 1 in memory"]["median"] > 0
    assert len(found["peak_memory_bytes"]) == 4
    assert all(value > 2**20 for value in found["peak_memory_bytes"].values())
    for part in ("read", "decode"):
        for batch in (1, 8):
            sides = found["throughput"][f"{part}, batch {batch}"]
            assert list(sides) == list(inference.SIDES)
            assert sides["bare"]["time_over_bare"]["median"] == 1
            assert sides["lora"]["time_over_bare"]["median"] > 0.5
    assert str(tmp_path) not in out.read_text()


def test_a_model_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main(["--model", "no/such-folder"]) == 2
    assert "no/such-folder" in capsys.readouterr().err
