"""What README and the site say is run: every block of Python, and every command as far as its options.

A page's blocks of Python run one after the other, in a folder that holds what the pages name: a small model with random
weights, ``my-model``, and the files of two tasks. A fence ```` ```python requires="flax" ```` needs a package of the
extra 'docs', and is left out where it is missing. One with ``title="Not run: WHY"`` needs another machine, and is only
compiled.
"""

import json
import os
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import typer

from backends.finetune.cli.commands import app
from backends.finetune.cli.modules import MODULES
from backends.finetune.conftest import tiny_model as tiny_model

ROOT = Path(__file__).parents[1]
BESIDE_CODE = ("README.md", "CONTRIBUTING.md", "bench/README.md", "backends/jax/README.md")
PAGES = [*(ROOT / name for name in BESIDE_CODE), *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(
    r'^```python(?: requires="([a-z]+)"| title="(Not run: [^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    """Every ``crma ...`` of every page, without its comment and its continuations."""
    found = []
    for page in PAGES:
        for block in COMMANDS.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                found += re.findall(r"(?:^|&& |--no-python )crma ([^#\n]*)", line)
    return sorted({" ".join(command.split()) for command in found})


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Path:
    """The folder in which a reader is."""
    (tmp_path / "my-model").symlink_to(tiny_model)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(tiny_model)
    for task, word in (("support", "invoice"), ("law", "contract")):
        for side, numbers in (("train", range(8)), ("holdout", range(8, 12))):
            rows = [{"prompt": f"{word} {n}? ", "response": f"{word[::-1]} {n}"} for n in numbers]
            (tmp_path / f"{task}-{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        rows = [{"prompt": f"{word} {n}? ", "response": f"{word[::-1]} {n}"} for n in range(12)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_python_run(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = PYTHON.findall(page.read_text(encoding="utf-8"))
    for _, _, code in blocks:
        compile(code, page.name, "exec")
    run = [code for package, not_run, code in blocks if not (not_run or (package and find_spec(package) is None))]
    (home / "page.py").write_text("\n".join(run), encoding="utf-8")
    if "import jax" not in "".join(run):
        monkeypatch.chdir(home)
        runpy.run_path("page.py")
        return
    # JAX counts its devices once a process; most of the time would go into compiling well.
    devices = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": devices, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands())
def test_commands_have_the_options_that_they_are_given(command: str) -> None:
    name, *arguments = shlex.split(command)
    if name in MODULES:
        return
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_the_walks_of_contributing_name_what_exists() -> None:
    """Each dotted name in backticks of the two walks is a module of backends.finetune, or stands in one."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walks = text[text.index("**One example, from its file") : text.index("**A port in another framework**")]
    names = re.findall(r"`([a-z_]+(?:\.\w+)+)`", walks)
    assert len(names) > 12
    for name in names:
        pkgutil.resolve_name(f"backends.finetune.{name}")


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [
        page.relative_to(ROOT / "docs").as_posix()
        for page in (ROOT / "docs").rglob("*")
        if page.suffix in (".md", ".ipynb")
    ]
    assert not [page for page in pages if f": {page}\n" not in navigation]
