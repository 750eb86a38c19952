"""The installed names, from a wheel and from a checkout, beside a user's own folders of the same names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("reference", "backends", "conformance", "bench", "spec")
SAME_OBJECTS = """
import sys
import crma
assert not {"torch", "jax", "transformers"} & set(sys.modules), "a framework is loaded before it is used"
from crma.finetune import read_results
from crma.reference import sinkhorn_projection
import backends, backends.finetune.runs.results, backends.torch, reference
assert crma.load_backend is backends.load_backend
assert crma.torch.CRMAAdapter is backends.torch.CRMAAdapter
assert read_results is backends.finetune.runs.results.read_results
assert sinkhorn_projection is reference.sinkhorn_projection
assert set(crma.torch.__all__) <= set(vars(crma.torch))
"""


def call(*command: Any, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module", params=["wheel", "editable"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``python`` and ``crma`` of a new environment, with the libraries of this one."""
    work = tmp_path_factory.mktemp(request.param)
    source = work / "source"  # so that what an earlier build left in the checkout is not installed
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    made = call(sys.executable, "-m", "venv", "--without-pip", work / "environment")
    assert made.returncode == 0, made.stderr
    python = work / "environment/bin/python"
    (packages,) = (work / "environment/lib").glob("python*/site-packages")
    # Paths of a .pth file do not read the .pth files there, so this environment's own installation stays out.
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = call(*pip, *(["--editable"] if request.param == "editable" else []), source)
    assert done.returncode == 0, done.stderr
    if request.param == "wheel":
        shutil.rmtree(source)
    return python.parent


@pytest.fixture
def clashing(tmp_path: Path) -> Path:
    """A user's project with a folder of each of the names."""
    for name in (*PACKAGES, "crma"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of the user')\n")
    return tmp_path


def test_the_facade_has_the_same_objects(programs: Path, tmp_path: Path) -> None:
    done = call(programs / "python", "-c", SAME_OBJECTS, folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [("--version",), ("protocols",), ("tolerances",), ("golden-vectors", "--check"), ("bench", "table", "--help")],
)
def test_commands_do_not_see_the_current_folder(programs: Path, clashing: Path, command: tuple[str, ...]) -> None:
    done = call(programs / "crma", *command, folder=clashing)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_suite_runs_beside_the_same_names(programs: Path, clashing: Path) -> None:
    options = ("--backend=reference", "--quick", "-n0", "-q", "test_refusals.py")
    done = call(programs / "crma", "conformance", *options, folder=clashing)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_torchrun_starts_the_command_beside_the_same_names(programs: Path, clashing: Path) -> None:
    torchrun = ("-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")
    done = call(programs / "python", *torchrun, programs / "crma", "--version", folder=clashing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("specification") == 2


@pytest.mark.parametrize("own", ["folder/data.txt", "package/__init__.py", "module.py"])
@pytest.mark.parametrize(
    ("module", "hiding"),
    [("crma", "backends"), ("crma.torch", "backends"), ("crma", "reference"), ("backends", "reference")],
)
def test_a_name_that_hides_ours_is_named(programs: Path, tmp_path: Path, module: str, hiding: str, own: str) -> None:
    """``python -c`` and ``python -m`` look into the current folder first."""
    form, separator, content = own.partition("/")
    file = tmp_path / hiding / content if separator else tmp_path / f"{hiding}.py"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    done = call(programs / "python", "-c", f"import {module}", folder=tmp_path)
    if form == "folder" and "wheel" in str(programs):  # one without __init__.py comes after an installed wheel
        assert (done.returncode, done.stderr) == (0, "")
        return
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: package {hiding}: got {file.parent if separator else file}")
    assert "allowed: " in last
    assert "Try: rename" in last


@pytest.mark.parametrize("name", ["bench", "conformance", "spec"])
def test_a_name_that_is_not_needed_does_no_harm(programs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = call(programs / "python", "-c", "from crma.torch import CRMAAdapter", folder=tmp_path)
    assert done.returncode == 0, done.stderr
