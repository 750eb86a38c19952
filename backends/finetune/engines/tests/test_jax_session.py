"""Runs in JAX beyond the contract: what is refused, and a mesh changes nothing but rounding."""

import os
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("optax")

from backends.finetune.conftest import measured
from backends.finetune.engines.tests.faults import spoil

JAX = ("--backend", "jax-cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(compiled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMA_CACHE", str(compiled))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_command, cache):
    """A run on one device, which the tests compare others with."""
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_command(folder, *JAX, "--conditions", "modular")) == 0
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *(
            (("--conditions", "naive", condition), f"conditions: got {condition}, with a JAX backend")
            for condition in ("replay", "a-gem", "ewc", "o-lora", "full", "modular-unconstrained")
        ),
        (("--set", "packing=true"), "packing: got True, with a JAX backend"),
        (("--set", "accumulation=2"), "accumulation: got 2, with a JAX backend"),
        (("--set", "quantization=4bit"), "quantization: got '4bit', with a JAX backend"),
    ],
)
def test_what_jax_cannot_do_is_refused_before_anything_starts(refused_run, more, message):
    error = refused_run(*JAX, *more)
    assert message in error
    assert "--backend torch-cpu" in error


def assert_same_but_for_rounding(run, finished, of_the_mesh):
    """MODULAR on a mesh and on one device; the phase ``of_the_mesh`` adds up otherwise, or it did not run there."""
    found, whole = ([line for line in measured(each) if line["condition"] == "modular"] for each in (run, finished))
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-4)
        assert mine["holdout"] == pytest.approx(theirs["holdout"], rel=1e-4)
    assert found[of_the_mesh]["losses"] != whole[of_the_mesh]["losses"]


@pytest.mark.slow
def test_rows_dealt_to_two_devices_train_the_same(finished, tmp_path, crma_process, finetune_command, monkeypatch):
    """Batches of 3 rows, which do not divide by 2."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2")
    process = crma_process(finetune_command(tmp_path / "run", *JAX, "--conditions", "modular", "--mesh", "2x1"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_but_for_rounding(tmp_path / "run", finished, of_the_mesh=0)


def test_a_run_may_be_interrupted_on_one_device_and_resumed_on_a_mesh(
    finished, tmp_path, crma, crma_process, finetune_command, monkeypatch
):
    """Checkpoints do not know the mesh. One phase and half of the next are of one device, the rest is of four."""
    spoil("jax", f"interrupted {12 + 8}", monkeypatch.setattr)
    modular = (*JAX, "--conditions", "modular")
    assert crma(finetune_command(tmp_path / "run", *modular))[0] == 130
    monkeypatch.undo()
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4")
    process = crma_process(finetune_command(tmp_path / "run", *modular, "--mesh", "2x2"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_but_for_rounding(tmp_path / "run", finished, of_the_mesh=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--backend", "jax-cpu", "--mesh", "2"), "DATAxMODEL"),
        (("--backend", "jax-cpu", "--mesh", "64x2"), "128 devices"),
        (("--backend", "torch-cpu", "--mesh", "2x1"), "--mesh"),
        (("--backend", "jax-cuda"), "no such device"),
        (("--backend", "jax-pallas"), "for fine-tuning"),
    ],
)
def test_a_device_that_is_not_there_is_one_clear_error(refused_run, more, message):
    assert message in refused_run(*more)


def test_a_missing_package_is_named(refused_run, monkeypatch):
    for module in ("backends.finetune.engines.jax.engine", "backends.finetune.engines.jax.step"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "optax", None)
    error = refused_run(*JAX)
    assert "no package named optax" in error
    assert "crma[finetune,jax]" in error
