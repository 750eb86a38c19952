"""Where a task's LoRA starts, and which version of the shared CRMA it answers with: whole runs on a tiny model."""

import json
from itertools import count

import numpy as np
import pytest

import reference
from backends.finetune.certify.certification import certify_run
from backends.finetune.conftest import adapters, measured, results_lines, rewrite_results
from backends.finetune.runs.results import read_results
from backends.finetune.training.branch import Branch

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

CONDITIONS = (
    "naive",
    "frozen-inherit",
    "frozen-nearest",
    "modular-inherit",
    "modular-ratchet",
    "frozen-double",
    "frozen-draw-2",
)


@pytest.fixture(scope="module", params=["torch-cpu", "jax-cpu"])
def run(request, tmp_path_factory, tiny_command):
    from backends.finetune.cli import main

    if request.param == "jax-cpu":
        pytest.importorskip("optax")
    folder = tmp_path_factory.mktemp(request.param) / "run"
    arguments = ["--set", "decision=2", "--backend", request.param, "--conditions", *CONDITIONS]
    assert main(tiny_command(folder, *arguments)) == 0
    return folder


def test_frozen_inherit_is_the_diagonal_of_naive(run):
    """NAIVE's one LoRA goes on from task to task; with a copy kept of each, that is FROZEN with an inherited start."""
    results = read_results(run)
    naive, inherit = (results.holdout_matrix(name, 0) for name in ("naive", "frozen-inherit"))
    assert np.diag(naive).tolist() == np.diag(inherit).tolist()
    assert (metrics := results.metrics("frozen-inherit", 0)) is not None
    assert metrics.drift == 0
    assert [record.start for record in results.phases_of("modular-inherit", 0)] == [None, "alpha", "beta"]


def test_the_loss_before_a_fresh_lora_without_crma_is_the_bare_models(tmp_path, tiny_command, monkeypatch):
    """What is taken over from the bare model is what measuring it gives, to the bit."""
    from backends.finetune.cli import main

    given = ["--set", "transfer=true", "--conditions", "naive", "frozen", "frozen-inherit", "modular"]
    assert main(tiny_command(tmp_path / "taken", *given)) == 0
    base = read_results(tmp_path / "taken").base[0].holdout
    frozen = read_results(tmp_path / "taken").phases_of("frozen", 0)
    assert [record.before for record in frozen] == list(base.values())
    monkeypatch.setattr(Branch, "_before", lambda self, phase: self.data.holdout[phase].loss(self.engine))
    assert main(tiny_command(tmp_path / "measured", *given)) == 0
    assert measured(tmp_path / "taken") == measured(tmp_path / "measured")


def test_a_task_is_not_measured_again_where_its_answers_cannot_have_changed(run, tmp_path, tiny_command, monkeypatch):
    """What was taken over from the phase before is what measuring it again gives, to the bit."""
    from backends.finetune.cli import main
    from backends.finetune.training.encoded_tasks import Evaluation

    backend = json.loads((run / "run.json").read_text())["backend"]
    names = ("frozen-inherit", "modular-inherit")
    given = ["--set", "decision=2", "--backend", backend, "--conditions", *names]
    scores, calls, turns = Evaluation.scores, [], count()

    def counted(*given):
        calls.append(given)
        return scores(*given)

    monkeypatch.setattr(Evaluation, "scores", counted)
    for turn, (again, expected) in enumerate(((False, 3 + 6), (True, 6 + 6))):
        if again:
            monkeypatch.setattr(Branch, "_serving", lambda *_: [str(next(turns))])
        calls.clear()
        assert main(tiny_command(tmp_path / str(turn), *given)) == 0
        assert len(calls) == expected
        wanted = [line for line in measured(run) if line["condition"] in names]
        assert measured(tmp_path / str(turn)) == wanted


def test_controls_train_twice_as_long_or_from_another_draw(run):
    inherit, double, drawn = (
        read_results(run).phases_of(name, 0) for name in ("frozen-inherit", "frozen-double", "frozen-draw-2")
    )
    for once, twice in zip(inherit, double, strict=True):
        assert len(twice.losses) == 2 * len(once.losses)
        assert twice.tokens == 2 * once.tokens
    assert drawn[0].losses[0] == inherit[0].losses[0]  # a fresh LoRA adds nothing, whatever was drawn
    assert drawn[0].losses[1:] != inherit[0].losses[1:]


def test_certify_finds_losses_of_texts_that_do_not_give_that_of_their_task(run):
    lines = results_lines(run)
    next(line for line in reversed(lines) if line.get("text_losses"))["text_losses"]["alpha"][0] += 0.01
    kept = (run / "results.jsonl").read_bytes()
    rewrite_results(run, lines)
    failed = [check.name for check in certify_run(run).checks if check.verdict == "fail"]
    (run / "results.jsonl").write_bytes(kept)
    assert failed == ["records as training writes them"]


def test_nearest_starts_from_the_task_that_fits_the_new_texts_best(run):
    starts = [record.start for record in read_results(run).phases_of("frozen-nearest", 0)]
    assert starts[:2] == [None, "alpha"]
    assert starts[2] in ("alpha", "beta")


def test_each_task_answers_with_the_version_that_its_decision_split_chose(run):
    results = read_results(run)
    records = results.phases_of("modular-ratchet", 0)
    versions: dict[str, int] = {}
    for before, record in zip([records[0], *records], records, strict=False):
        losses = [record.decision[task] for task in versions]
        moves = reference.ratchet_moves([old for old, _ in losses], [new for _, new in losses])
        for task, moved in zip(list(versions), moves, strict=True):
            if moved:
                versions[task] = record.phase
            else:  # it answers as before, to the bit
                assert record.holdout[task] == before.holdout[task]
        versions[record.task] = record.phase
        assert record.versions == versions
    from backends.finetune.inference.run_adapters import run_adapters

    answering = run_adapters(run, condition="modular-ratchet").tasks
    assert {name: task.crma.name for name, task in answering.items() if task.crma} == {
        name: f"crma-{version}.safetensors" for name, version in versions.items()
    }


def test_certify_finds_a_version_that_the_losses_do_not_choose(run):
    assert certify_run(run).passed
    lines = results_lines(run)
    last = next(line for line in reversed(lines) if line.get("condition") == "modular-ratchet")
    last["versions"]["alpha"] = 1 if last["versions"]["alpha"] != 1 else 0
    kept = (run / "results.jsonl").read_bytes()
    rewrite_results(run, lines)
    failed = [check.name for check in certify_run(run).checks if check.verdict == "fail"]
    (run / "results.jsonl").write_bytes(kept)
    assert failed == ["versions as decided"]


def test_a_stopped_run_goes_on_with_the_same_versions_and_starts(run, tmp_path, tiny_command, monkeypatch):
    from backends.finetune.cli import main

    backend = json.loads((run / "run.json").read_text())["backend"]
    given = tiny_command(
        tmp_path / "again",
        "--set",
        "decision=2",
        "--backend",
        backend,
        "--conditions",
        "modular-ratchet",
        "frozen-nearest",
    )
    evaluate = Branch._evaluate
    for phase in (1, 2):

        def stopped(self, at, record, phase=phase):
            evaluate(self, at, record)
            if at == phase:
                raise KeyboardInterrupt

        monkeypatch.setattr(Branch, "_evaluate", stopped)
        assert main(given) == 130
    monkeypatch.undo()
    assert main(given) == 0
    again = {line["condition"] for line in measured(tmp_path / "again")}
    wanted = [line for line in measured(run) if line["condition"] in again]
    by_condition = sorted(wanted, key=lambda line: line["condition"])
    assert sorted(measured(tmp_path / "again"), key=lambda line: line["condition"]) == by_condition
    assert adapters(tmp_path / "again").items() <= adapters(run).items()


def test_a_ratchet_without_texts_to_decide_by_is_refused(crma, finetune_command, tmp_path):
    code, _, error = crma(finetune_command(tmp_path / "run", "--conditions", "modular-ratchet"))
    assert code == 2
    assert "decision: got 0 with modular-ratchet" in error
    code, _, error = crma(finetune_command(tmp_path / "run", "--conditions", "modular-ratchet", "--set", "decision=4"))
    assert code == 2
    assert "holdout examples of alpha" in error


def test_an_earlier_part_is_answered_with_the_newest_lora_of_its_domain(tiny_model, tmp_path):
    from backends.finetune import finetune
    from backends.finetune.inference.run_adapters import run_adapters

    tasks = ["Fictional-Law I", "Fictional-Company I", "Fictional-Law II"]
    sizes = ["train=8", "holdout=4", "max_tokens=160", "precision=float32"]
    settings, conditions = [f"tasks={json.dumps(tasks)}", *sizes], ["frozen-nearest", "frozen-newest"]
    results = finetune(
        "recurring",
        model=tiny_model,
        out=tmp_path,
        seeds=[3],
        conditions=conditions,
        settings=settings,
        threads=1,
        quiet=True,
    )
    assert [task.rpartition(" ")[0] for task in results.tasks].count("Fictional-Law") == 2
    first, second = (results.tasks.index(f"Fictional-Law {part}") for part in ("I", "II"))
    assert first < second
    nearest, newest = (results.holdout_matrix(name, 3) for name in conditions)
    assert nearest[second, first] == nearest[first, first]
    assert newest[second, first] != newest[first, first]
    answering = run_adapters(tmp_path / "seed-3", condition="frozen-newest").tasks
    assert answering["Fictional-Law I"].lora == answering["Fictional-Law II"].lora
    assert certify_run(tmp_path / "seed-3").passed


@pytest.mark.parametrize("backend", ["torch-cpu", "jax-cpu"])
def test_what_is_distilled_into_a_tasks_lora_is_the_last_tasks(tmp_path, tiny_command, monkeypatch, compiled, backend):
    """Without CRMA the LoRAs are those of LwF, kept of each task; and a killed phase ends with the same bits."""
    from backends.finetune.cli import main
    from backends.finetune.training.phase import PhaseTraining

    names = ("frozen-inherit", "lwf", "frozen-distilled", "modular-distilled@data-0.003")
    given = ["--set", "lwf.strength=0.5", "--set", "distilled={strength = 0.5}", "--set", "checkpoint_every=1"]
    given += ["--conditions", *names, "--backend", backend]
    if backend == "jax-cpu":
        pytest.importorskip("optax", reason="pip install 'crma[jax]'")
        monkeypatch.setenv("CRMA_CACHE", str(compiled))
    assert main(tiny_command(tmp_path / "whole", *given)) == 0
    results = read_results(tmp_path / "whole")
    inherit, lwf, distilled = (results.holdout_matrix(name, 0) for name in names[:3])
    assert np.diag(lwf).tolist() == np.diag(distilled).tolist() != np.diag(inherit).tolist()
    for name in names[2:]:
        assert [record.start for record in results.phases_of(name, 0)] == [None, "alpha", "beta"]
    assert (metrics := results.metrics("frozen-distilled", 0)) is not None
    assert metrics.drift == 0
    step = PhaseTraining._step

    def killed(self, task, index, *others):
        if (self.name, task, index) == (names[3], 1, 2):
            raise KeyboardInterrupt
        return step(self, task, index, *others)

    with monkeypatch.context() as patched:
        patched.setattr(PhaseTraining, "_step", killed)
        assert main(tiny_command(tmp_path / "killed", *given)) != 0
    assert len(read_results(tmp_path / "killed").phases_of(names[3], 0)) == 1
    assert main(tiny_command(tmp_path / "killed", *given)) == 0
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")
    assert {check.verdict for check in certify_run(tmp_path / "whole").checks} <= {"pass", "not promised"}


def test_what_is_held_near_the_base_model_stays_there(tmp_path, tiny_command):
    """From the second task on; the first is trained as FROZEN's."""
    from backends.finetune.cli import main

    given, names = ("--set", "transfer=true", "--set", "distilled={strength = 1000}"), ("frozen", "frozen-near-base")
    assert main(tiny_command(tmp_path / "run", *given, "--conditions", *names)) == 0
    results = read_results(tmp_path / "run")
    bare, (frozen, near) = results.base[0].holdout, (results.phases_of(name, 0) for name in names)
    assert (frozen[0].losses, frozen[0].holdout) == (near[0].losses, near[0].holdout)
    assert frozen[1].losses[0] == near[1].losses[0]
    for phase in (1, 2):
        task = frozen[phase].task
        assert near[phase].holdout[task] == pytest.approx(bare[task], rel=0.01)
        assert frozen[phase].holdout[task] < 0.9 * bare[task]
