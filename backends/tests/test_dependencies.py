"""What the code imports is what pyproject.toml declares, room by room, and nothing is declared that nobody uses."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("pyproject.toml lies in a checkout", allow_module_level=True)

OWN = {"reference", "backends", "conformance", "bench", "spec", "docs"}
#: folder -> extras of which its code may use the packages; the longest folder that fits counts
ROOMS = {
    "reference": (),
    "reference/paired_tests.py": ("finetune",),  # statistics over seeds, beside the mathematics of CRMA
    "backends": ("torch", "triton", "jax"),
    "backends/torch": ("triton", "finetune"),  # trainer.py alone serves users of transformers
    "backends/jax": ("jax",),
    "backends/finetune": ("finetune", "data", "jax", "router", "tensorboard", "quantization"),
    "backends/finetune/learning": ("finetune", "evaluate", "router"),
    "conformance": ("test",),
    "conformance/examples": ("test", "torch"),
    "conformance/selftest": ("test", "torch", "jax"),
    "bench": ("bench", "data", "triton", "jax", "peers"),
    "docs": ("docs",),
}
TEST_EXTRAS = ("test", "finetune", "triton", "jax", "quantization", "trl")
#: distribution -> module, where they differ by more than a hyphen
MODULES = {
    "pillow": "PIL",
    "pot": "ot",
    "mhc-pytorch": "mhc",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "griffelib": "griffe",
}
#: declared, but used from the command line, as a plug-in, or by another library on our behalf
NOT_IMPORTED = {"import-linter", "ruff", "mypy", "pytest-timeout", "pytest-benchmark", "gguf", "setuptools"}
NOT_IMPORTED |= {"mkdocs-material", "mkdocstrings", "mkdocs-jupyter", "ipykernel", "flax", "equinox"}  # of the site


@cache
def declared() -> dict[str, set[str]]:
    """Distributions of each extra, those that it takes from other extras included; "" stands for the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    raw = {"": project["dependencies"], **project["optional-dependencies"]}

    def names(extra: str) -> Iterator[str]:
        for requirement in raw[extra]:
            if nested := re.match(r"crma\[(\w+)\]", requirement):
                yield from names(nested[1])
            else:
                yield re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")  # type: ignore[index]

    return {extra: {*names(""), *names(extra)} for extra in raw}


def module_of(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


def sources() -> list[Path]:
    return [path for folder in sorted(OWN - {"spec"}) for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Modules of others that a file names in an import, or in importorskip, find_spec and import_module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("importorskip", "find_spec", "import_module"):
                found.add(str(node.args[0].value))
    return (
        {name.partition(".")[0] for name in found} - OWN - {"jaxlib", "crma"} - sys.stdlib_module_names
    )  # jax's own half; our facade


def extras_of(path: Path) -> tuple[str, ...]:
    relative = path.relative_to(ROOT)
    room = max((name for name in ROOMS if relative.is_relative_to(name)), key=len)
    is_test = "tests" in path.parts or re.match(r"(test_|conftest|_)(?!_)", path.name) is not None
    return ROOMS[room] + TEST_EXTRAS if is_test else ROOMS[room]


@pytest.mark.parametrize("room", ROOMS)
def test_every_import_is_declared_by_an_extra_of_its_room(room: str) -> None:
    undeclared = {}
    for path in sources():
        if path.relative_to(ROOT).is_relative_to(room):
            allowed = {module_of(name) for extra in ("", *extras_of(path)) for name in declared()[extra]}
            if surplus := imports(path) - allowed:
                undeclared[str(path.relative_to(ROOT))] = sorted(surplus)
    assert not undeclared


def test_every_declared_package_is_named_somewhere() -> None:
    """By an import, or as the name that a table or a function imports it by."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources() if path != Path(__file__))
    everything = set().union(*declared().values()) - NOT_IMPORTED
    assert not {name for name in everything if not re.search(rf"\b{module_of(name)}\b", code)}


def test_the_pins_hold_every_declared_package() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert not set().union(*declared().values()) - pinned


def test_what_a_test_draws_is_the_same_each_time() -> None:
    unseeded = re.compile(r"default_rng\(\)|Generator\(\)\.seed\(|generator\.seed\(\)")
    tests = [path for path in sources() if path.name.startswith("test_")]
    assert len(tests) > 100
    assert not [path.name for path in tests if unseeded.search(path.read_text(encoding="utf-8"))]
