"""Runs that cannot be; and which tests of the contract are slow: those of two processes, of which each run takes half a
minute. CI has test_torchrun.py, where two processes are held against one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from backends.finetune.conftest import Arguments


@pytest.fixture
def refused_run(
    crma: Callable[[list[str]], tuple[int, str, str]], finetune_command: Arguments, tmp_path: Path
) -> Callable[..., str]:
    """Ask for a run that cannot be: the message, before which nothing was written."""

    def ask(*more: str) -> str:
        code, _, error = crma(finetune_command(tmp_path / "run", *more))
        assert code == 2
        assert "Traceback" not in error
        assert not (tmp_path / "run").exists()
        return error

    return ask


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_contract.py" and "[torchrun" in item.name:
            item.add_marker(pytest.mark.slow)
