"""What one process compiles, the next one finds on the disk: the same bits, whatever has happened to the files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("optax")

from backends.finetune.conftest import tiny_protocol
from backends.finetune.engines.jax import placement

REPOSITORY = Path(__file__).parents[4]


def steps(arguments, **variables):
    """What ``_compiled_steps`` prints in a process of its own."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment = without | {"NPROC": "1", "PYTHONPATH": str(REPOSITORY)} | variables
    command = [sys.executable, "-m", "backends.finetune.engines.tests._compiled_steps", *arguments]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def largest(folder):
    return sorted(folder.rglob("*-cache"), key=lambda path: path.stat().st_size)[-3:]


def test_a_second_process_compiles_nothing_and_damage_costs_no_more_than_time(tiny_model, tmp_path):
    cache = tmp_path / "cache"
    arguments = [str(tiny_model), str(tiny_protocol(tmp_path, tiny_model))]
    first = steps(arguments, CRMA_CACHE=str(cache))
    assert first["compile_requests_use_cache"] > 0 == first["cache_hits"]
    second = steps(arguments, CRMA_CACHE=str(cache))
    assert second["cache_hits"] == second["compile_requests_use_cache"] == first["compile_requests_use_cache"]
    assert second["losses"] == first["losses"]

    unfinished, cut_short, flipped = largest(cache)
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    unfinished.with_name(unfinished.name.removesuffix("cache") + "atime").unlink()  # as a kill leaves it
    cut_short.write_bytes(cut_short.read_bytes()[:-1000])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 255
    flipped.write_bytes(data)
    third = steps(arguments, CRMA_CACHE=str(cache))
    assert third["losses"] == first["losses"]
    assert third["cache_hits"] == first["compile_requests_use_cache"] - 3
    assert unfinished.stat().st_size > 1000  # written again


@pytest.fixture
def folder_after(monkeypatch, tmp_path):
    """A function: what was the folder before -> what it is afterwards, on a processor of that name."""
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path))
    before = {name: value for name, value in jax.config.values.items() if "cache" in name}

    def folder(given, processor="one"):
        monkeypatch.setattr(placement, "_processor", lambda: processor)
        jax.config.update("jax_compilation_cache_dir", given)
        placement.keep_what_is_compiled()
        return jax.config.values["jax_compilation_cache_dir"]

    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_that_the_user_chose_is_left_alone(folder_after, tmp_path):
    assert folder_after(str(tmp_path / "chosen")) == str(tmp_path / "chosen")


def test_another_processor_has_a_folder_of_its_own(folder_after, tmp_path):
    one, another, again = (folder_after(None, processor) for processor in ("one", "another", "one"))
    assert one == again != another
    assert Path(one).parent == Path(another).parent == tmp_path / "jax"
