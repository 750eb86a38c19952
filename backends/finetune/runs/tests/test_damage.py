"""Damage to any file of a run is noticed by whatever reads it: of 2,600 mutations none loads with other values."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
import safetensors.torch

from backends.adapter_folder import read_adapter
from backends.finetune.engines.torch.checkpoint import read_tensors
from backends.finetune.engines.torch.unconstrained import load_unconstrained
from backends.finetune.inference.peft_adapters import load_adapter
from backends.finetune.inference.router_file import RouterContent, read_router, write_router
from backends.finetune.runs.checkpoint_file import read_checkpoint
from backends.finetune.runs.results import read_results
from backends.finetune.runs.run_folder import RunFolder, checked_results
from backends.torch import load_state
from reference.errors import CRMAError, RunFolderError

MUTATIONS = 200  # of each kind of file
CONDITIONS = ("frozen", "modular", "modular-unconstrained", "ewc", "full")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_command: Callable[..., list[str]]) -> Path:
    """A run of every kind of file, a checkpoint and a router included."""
    from backends.finetune.cli import main

    run = tmp_path_factory.mktemp("damage") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "forget", lambda *_: None)  # what a run removes when it has served
        more = ["--conditions", *CONDITIONS, "--set", "epochs=2"]
        assert main(tiny_command(run, *more)) == 0
    centroids = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_router(run / "router.safetensors", RouterContent(("a", "b", "c"), centroids, 0.5, "angles", 0.05))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def mutations(data: bytes, seed: str) -> Iterator[bytes]:
    """Bits and bytes changed, ranges zeroed, texts cut, bytes put in and left out; each differs from ``data``."""
    rng = random.Random(seed)
    count = 0
    while count < MUTATIONS:
        changed, at = bytearray(data), rng.randrange(len(data))
        if count % 2:  # the header and the metadata, which are a small part of most files
            at = rng.randrange(min(len(data), 600))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                del changed[at : at + rng.randrange(1, 9)]
            case _:
                end = min(len(data), at + rng.randrange(1, 65))
                changed[at:end] = bytes(end - at)
        if changed != data:
            count += 1
            yield bytes(changed)


def lora(path: Path) -> Any:
    weights, settings = read_adapter(path.parent, required=True)
    return safetensors.torch.load(weights), settings


def served(path: Path) -> Any:
    content = load_adapter(path.parent, "cpu")
    return content.tensors, content.config.to_dict()


def checkpoint(path: Path) -> Any:
    return read_checkpoint(path, 2)


#: file -> what reads it
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "LoRA": ("0-frozen/task-1/adapter_model.safetensors", lora),
    "settings of LoRA": ("0-frozen/task-1/adapter_config.json", lora),
    "LoRA in the registry": ("0-modular/task-2/adapter_model.safetensors", served),
    "settings in the registry": ("0-modular/task-2/adapter_config.json", served),
    "CRMA": ("0-modular/crma-1.safetensors", lambda path: load_state(path)),
    "free mixing": ("0-modular-unconstrained/mixing-1.safetensors", load_unconstrained),
    "EWC": ("0-ewc/consolidated-2.safetensors", lambda path: read_tensors(path, "cpu")),
    "whole model": ("0-full/model-2.safetensors", lambda path: read_tensors(path, "cpu")),
    "checkpoint": ("0-modular/checkpoint.safetensors", checkpoint),
    "router": ("router.safetensors", read_router),
    "run.json": ("run.json", lambda path: checked_results(path.parent)),
    "fingerprints of the tasks": ("tasks-0.json", lambda path: checked_results(path.parent)),
}


def test_the_mutations_are_as_many_as_said() -> None:
    assert (len(READERS) + 1) * MUTATIONS == 2600


@pytest.mark.parametrize("name", READERS)
def test_no_damaged_file_loads(run: Path, name: str) -> None:
    place, read = READERS[name]
    path = run / place
    whole = path.read_bytes()
    assert read(path) is not None
    loaded = []
    for changed in mutations(whole, name):
        path.write_bytes(changed)
        try:
            read(path)
        except (CRMAError, ValueError, OSError):
            continue
        loaded.append(changed)
    # What still loads has lost its digest, and is a file such as PEFT or another port writes: with the values it had.
    path.write_bytes(whole)
    expected = read(path)
    for changed in loaded:
        path.write_bytes(changed)
        assert name in ("LoRA in the registry", "CRMA")
        assert equal(read(path), expected)
    assert len(loaded) < 0.1 * MUTATIONS


def equal(one: Any, other: Any) -> bool:
    """The same tensors and settings; what a state file says of its base model in words is compared by its users."""
    (tensors, settings), (others, more) = one[:2], other[:2]
    if not isinstance(tensors, dict):
        tensors, others = tensors._asdict(), others._asdict()
    same = [torch.equal(tensor, others[name]) for name, tensor in tensors.items()]
    return settings == more and tensors.keys() == others.keys() and all(same)


def test_damaged_results_are_refused_or_end_earlier(run: Path) -> None:
    path = run / "results.jsonl"
    whole, results = path.read_bytes(), read_results(run)
    lines = whole.splitlines(keepends=True)
    moved = [
        b"".join([lines[0], *lines[2:]]),
        b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
        b"".join(lines[1:]),
    ]
    for changed in [*mutations(whole, "results"), *moved]:
        path.write_bytes(changed)
        try:
            found = read_results(run)
        except RunFolderError:
            continue
        assert found.run == results.run
        assert list(found.phases.items()) == list(results.phases.items())[: len(found.phases)]
        assert whole.startswith(changed.rstrip(b"\n").rpartition(b"\n")[0])  # a last line may be cut, as by a kill


# A router belongs to no phase, and a checkpoint is of no use to a finished run.
@pytest.mark.parametrize("name", [name for name in READERS if name not in ("router", "checkpoint")])
def test_a_run_with_a_damaged_file_is_neither_continued_nor_reported(
    run: Path, name: str, tiny_command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    from backends.finetune.cli import main

    path = run / READERS[name][0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    resumed = tiny_command(run, "--conditions", *CONDITIONS, "--set", "epochs=2", "--seeds", "0", "1")
    for arguments in (resumed, ["report", str(run)], ["certify", str(run)]):
        assert main(arguments) == (1 if arguments[0] == "certify" else 2)
        out, err = capsys.readouterr()
        said = (err or out).replace("\n", "")
        assert path.name in said or "another configuration" in said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0-frozen/task-0", "0-frozen/task-1"),
        ("0-frozen/task-0", "0-modular/task-0"),
        ("0-modular/crma-0.safetensors", "0-modular/crma-1.safetensors"),
        ("0-full/model-1.safetensors", "0-full/model-2.safetensors"),
    ],
)
def test_two_files_that_changed_places_are_noticed(run: Path, one: str, other: str) -> None:
    checked_results(run)
    (run / one).rename(run / "held")
    (run / other).rename(run / one)
    (run / "held").rename(run / other)
    with pytest.raises(RunFolderError, match="SHA-256"):
        checked_results(run)


def test_a_served_adapter_does_not_change_with_its_file(run: Path) -> None:
    path = run / "0-frozen/task-1/adapter_model.safetensors"
    content = load_adapter(path.parent, "cpu")
    before = {name: tensor.clone() for name, tensor in content.tensors.items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in content.tensors.items())
    with path.open("r+b") as file:
        file.truncate(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in content.tensors.items())
