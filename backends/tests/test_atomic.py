"""Atomic writing: whoever interrupts it, the old file or the new one is there, whole. Clause: STATE-3."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.atomic import atomic_write
from reference.errors import DiskSpaceError

WRITER = """
import os, signal, sys
from pathlib import Path
from backends.atomic import atomic_write
def dying(function):
    def wrapper(*arguments, **options):
        if sys.argv[2] == "after":
            function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapper
setattr(os, sys.argv[1], dying(getattr(os, sys.argv[1])))
atomic_write(Path(sys.argv[3]), b"new" * 1000)
"""


@pytest.mark.clause("STATE-3")
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_in_the_middle_leaves_the_old_file_or_the_new_one(tmp_path: Path, call: str, moment: str) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"old")
    process = subprocess.run([sys.executable, "-c", WRITER, call, moment, str(file)], cwd=Path(__file__).parents[2])
    assert process.returncode == -signal.SIGKILL
    renamed = call == "replace" and moment == "after"
    assert file.read_bytes() == (b"new" * 1000 if renamed else b"old")
    atomic_write(file, b"next")
    assert file.read_bytes() == b"next"


@pytest.mark.clause("STATE-3")
def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return wrapper

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    atomic_write(tmp_path / "folder" / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, and the folder that holds the name
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


@pytest.mark.clause("STATE-3", "ERR-4")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskSpaceError, match="free some space"):
        atomic_write(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
