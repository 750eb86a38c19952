"""The budget of an assistant's shared CRMA: its kind is the folder's, and what was stored keeps it."""

import json
import shutil

import numpy as np
import pytest

import reference
from backends.finetune.certify.states import layers_of
from backends.finetune.learning.card import model_card
from backends.finetune.learning.forget import forget
from backends.finetune.learning.tests.conftest import content
from backends.finetune.runs.assistant_folder import AssistantFolder
from backends.finetune.runs.moments_file import read_moments, write_moments
from backends.torch import load_state
from reference.errors import ProtocolError, RunFolderError

TIGHT = 1e-4  # less than what a task would move otherwise
KIND = "a budget of another kind than the folder's"


@pytest.fixture
def taught(teach, tmp_path):
    for letter in "ab":
        teach(letter, settings=(f"crma.data_budget={TIGHT}",))
    return tmp_path / "assistant"


def moved(folder: AssistantFolder) -> list[float]:
    """The data displacement of every layer in the second phase, by the reference."""
    first, last = (load_state(folder.crma(phase)) for phase in (0, 1))
    totals, tokens = read_moments(folder.files(0).moments)
    return [
        reference.data_displacement(anchor, state, reference.StreamMoment(total, tokens), first.config.iterations)
        for anchor, state, total in zip(layers_of(first), layers_of(last), totals, strict=True)
    ]


@pytest.mark.clause("DATA-1", "DATA-3")
def test_earlier_tasks_see_no_more_than_the_budget_and_the_basis_stays(taught, teach):
    folder = AssistantFolder(taught)
    assert max(moved(folder)) == pytest.approx(TIGHT, abs=1e-6)
    first, last = (load_state(folder.crma(phase)).state for phase in (0, 1))
    assert first.bases.equal(last.bases)
    assert not first.mix_logits.equal(last.mix_logits)
    (before, seen), (both, count) = (read_moments(folder.files(phase).moments) for phase in (0, 1))
    counted = [record.tokens // 4 - record.texts["train"].texts for record in folder.read().learned]  # four epochs
    assert (seen, count) == (counted[0], sum(counted))
    assert (np.trace(both - before, axis1=1, axis2=2) > 0).all()
    assert "as a root mean square, is at most 0.0001." in model_card(folder.read(), "b", merged=False)


@pytest.mark.clause("DATA-3")
def test_a_later_task_may_have_another_size(taught, teach, tmp_path):
    teach("c", settings=("crma.data_budget=0.01",))
    record = AssistantFolder(taught).read().learned[2]
    assert (record.config["crma"]["data_budget"], record.config["crma"]["displacement_budget"]) == (0.01, None)


def test_the_kind_is_that_of_the_folder(taught, teach, tmp_path):
    before = content(taught)
    with pytest.raises(ProtocolError, match=KIND):
        teach("c", settings=("crma.displacement_budget=0.05",))
    assert content(taught) == before
    teach("a", into="other", settings=("crma.displacement_budget=0.05",))
    before = content(tmp_path / "other")
    with pytest.raises(ProtocolError, match=KIND):
        teach("b", into="other", settings=("crma.data_budget=0.05",))
    assert content(tmp_path / "other") == before
    # As in a folder of an earlier version, whose settings know of no other kind, and without a word about it now
    teach("b", into="other", settings=("crma.log_every=2", "crma.displacement_budget=0.04"))
    folder = AssistantFolder(tmp_path / "other")
    crma = folder.read().learned[1].config["crma"]
    assert (crma["displacement_budget"], crma["data_budget"]) == (0.04, None)
    assert not list((tmp_path / "other").glob("moments-*"))


@pytest.mark.parametrize("name", ["displacement_budget", "data_budget"])
def test_a_folder_keeps_its_budget_where_nothing_is_said(tmp_path, teach, monkeypatch, name):
    """Whatever the default has become since it was begun."""
    teach("a", settings=(f"crma.{name}=0.05",))
    monkeypatch.setattr("backends.finetune.learning.tests.conftest.SETTINGS", ("epochs=4", "max_tokens=64"))
    teach("b", settings=("precision=float32",))
    crma = AssistantFolder(tmp_path / "assistant").read().learned[1].config["crma"]
    assert {kind: crma[kind] for kind in ("displacement_budget", "data_budget") if crma[kind]} == {name: 0.05}


def test_a_phase_that_an_earlier_version_began_goes_on(tmp_path, teach, monkeypatch):
    """Its settings know of no data budget."""
    settings = ("crma.displacement_budget=0.05",)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("backends.finetune.engines.torch.engine.TorchEngine.save_phase", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach("a", settings=settings)
    underway = AssistantFolder(tmp_path / "assistant").underway
    said = json.loads(underway.read_text())
    del said["settings"]["crma"]["data_budget"]
    underway.write_text(json.dumps(said))
    with pytest.raises(RunFolderError, match="with other settings"):
        teach("a", settings=("crma.displacement_budget=0.04",))
    assert list(teach("a", settings=settings).tasks) == ["a"]


def test_what_is_forgotten_stays_in_the_moments_and_that_is_said(taught, teach, tmp_path):
    from backends.finetune.cli import main

    moments = {path.name: path.read_bytes() for path in taught.glob("moments-*")}
    assert "The moments of the data budget keep sums over its tokens" in forget(taught, "b")
    assert moments == {path.name: path.read_bytes() for path in taught.glob("moments-*")}
    teach("c")
    assert main(["certify", str(taught)]) == 0
    teach("a", "unbudgeted", settings=("crma.displacement_budget=0.04",))
    assert "moments" not in forget(tmp_path / "unbudgeted", "a")


@pytest.mark.clause("DATA-2", "DATA-5")
def test_certify_measures_what_earlier_tasks_see(taught, tmp_path, capsys):
    from backends.finetune.cli import main

    assert main(["certify", str(taught), "--json", str(tmp_path / "c.json")]) == 0
    checks = {check["name"]: check for check in json.loads((tmp_path / "c.json").read_text())["checks"]}
    assert checks["data displacement, stored"]["value"] == pytest.approx(TIGHT, abs=1e-6)
    assert {"moment files whole", "moments plausible", "basis unchanged"} <= checks.keys()
    assert checks["data displacement, logged"]["value"] <= TIGHT + 1e-6
    assert checks["data displacement as logged"]["value"] < 1e-6
    forged = tmp_path / "forged"
    shutil.copytree(taught, forged)
    path = AssistantFolder(forged).files(0).moments
    totals, count = read_moments(path)
    write_moments(path, 4 * totals, count)
    assert main(["certify", str(forged)]) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said
    assert "moments-0.safetensors" in said
