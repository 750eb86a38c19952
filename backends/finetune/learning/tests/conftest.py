"""Data of a task, and the function that teaches it to an assistant on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.finetune.inference.tests.conftest import make_run, modular_run  # noqa: F401

pytest.importorskip("torch")
pytest.importorskip("peft")

SETTINGS = ("lora.rank=2", "lora.alpha=4", "lora.learning_rate=2e-2", "crma.streams=2", "crma.rank=2", "epochs=4",
            "precision=float32", "crma.data_budget=0.02", "checkpoint_every=2", "max_tokens=64")  # fmt: skip


def rows(letter: str, count: int = 20) -> list[dict[str, Any]]:
    """Prompts that every task shares, with the task's own answers."""
    return [{"prompt": f"say {number}:", "response": f"{letter * 5}{number}", "id": number} for number in range(count)]


def write_jsonl(path: Path, content: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture
def teach(tmp_path: Path, tiny_model: Path) -> Callable[..., Any]:
    """Teach a task, named by its letter, to the assistant ``into`` of this test."""
    from backends.finetune.learning.learn import learn

    def taught(letter: str, into: str = "assistant", settings: tuple[str, ...] = (), **given: Any) -> Any:
        data = given.pop("data", None) or write_jsonl(tmp_path / f"{letter}.jsonl", rows(letter))
        options: dict[str, Any] = {"model": tiny_model, "threads": 1, "answers": 0, "quiet": True} | given
        replaced = {setting.partition("=")[0] for setting in settings}
        if any(field.endswith("_budget") for field in replaced):
            replaced.add("crma.data_budget")
        kept = [setting for setting in SETTINGS if setting.partition("=")[0] not in replaced]
        return learn(data, tmp_path / into, settings=[*kept, *settings], **options)

    return taught


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but the page and the lock, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "status.html")
    }
