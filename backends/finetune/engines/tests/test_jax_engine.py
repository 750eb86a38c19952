"""The two engines against each other: the same start and data, the same training; files of one load in the other."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("optax")

from safetensors.numpy import load_file

from backends.finetune.conftest import tiny_protocol
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.engine import mean_loss
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.protocols.protocol import Protocol, load_protocol
from backends.finetune.runs.run_folder import PhaseFiles, RunFolder
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import Batch
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import Example

STEPS, CRMA = 20, ("basis", "mixing", "gate")
#: relative; seen were up to 3.4e-6 and 3.4e-5, and Adam, which divides by the gradient's own size, lets rounding grow
LOSS_TOLERANCE, PARAMETER_TOLERANCE = 5e-5, 1e-3


@pytest.fixture(autouse=True)
def _strict_promotion() -> Iterator[None]:
    """Training works in a program that forbids JAX to promote dtypes by itself."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def protocol(tiny_model: Path, tmp_path: Path) -> Protocol:
    return load_protocol(str(tiny_protocol(tmp_path, tiny_model)))


@pytest.fixture
def engines(tiny_model: Path, protocol: Protocol) -> Callable[..., list[Any]]:
    """A function that makes a pair of engines, of PyTorch and of JAX, for one condition."""
    factories = [engine_factory(name)[0] for name in ("torch-cpu", "jax-cpu")]

    def make_both(condition: str, given: Protocol = protocol) -> list[Any]:
        return [make(Job(tiny_model, given, parse_condition(condition), 3)) for make in factories]

    return make_both


@pytest.fixture
def encoder(tiny_model: Path, protocol: Protocol) -> Encoder:
    return Encoder(load_tokenizer(tiny_model), protocol)


def batches(encoder: Encoder, rng: np.random.Generator, count: int) -> list[Batch]:
    letters = np.array(list("abcdefgh "))
    examples = [
        Example("".join(rng.choice(letters, 3)), "".join(rng.choice(letters, rng.integers(2, 9))))
        for _ in range(3 * count)
    ]
    encoded = encoder.encode(examples, "made up")
    return [encoder.batch([[e] for e in encoded[start : start + 3]]) for start in range(0, len(encoded), 3)]


def hand_over(source: Any, target: Any, folder: Path) -> None:
    """What one engine has trained, to the other, by files."""
    source.save_phase(0, files(folder))
    target.restore([files(folder)])


def files(folder: Path) -> PhaseFiles:
    return RunFolder(folder).files(0, "any", 0)


def arrays(engine: Any, folder: Path) -> dict[str, np.ndarray]:
    engine.save_phase(0, files(folder))
    found = load_file(files(folder).lora / "adapter_model.safetensors")
    crma = files(folder).crma
    return found | (load_file(crma) if crma.exists() else {})


def assert_same_way(ours: Any, theirs: Any, start: dict[str, np.ndarray], folder: Path, moves: str = "") -> None:
    """Both have gone the same way from ``start``, on which only what has ``moves`` in its name has moved at all."""
    end, other = arrays(ours, folder / "ours"), arrays(theirs, folder / "theirs")
    assert end.keys() == other.keys()
    for name, before in start.items():
        moved, apart = np.linalg.norm(end[name] - before), np.linalg.norm(other[name] - end[name])
        assert (moved > 0) == (moves in name), name
        assert apart <= PARAMETER_TOLERANCE * moved, name


@pytest.mark.parametrize("condition", ["frozen", "modular", "frozen-raised"])
def test_twenty_steps_from_the_same_start_are_the_same_training(engines, encoder, condition, tmp_path):
    ours, theirs = engines(condition)
    for engine in (ours, theirs):
        engine.begin_phase(0, STEPS)
    assert theirs.parameter_counts() == ours.parameter_counts()
    hand_over(ours, theirs, tmp_path / "start")
    start = arrays(ours, tmp_path / "before")
    given = batches(encoder, np.random.default_rng(0), STEPS + 1)
    reports = [(ours.step([batch], i), theirs.step([batch], i)) for i, batch in enumerate(given[:-1])]
    losses = np.array([[report.loss for report in pair] for pair in reports])
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=LOSS_TOLERANCE)
    assert np.ptp(losses[:, 0]) > 100 * LOSS_TOLERANCE * losses.max()  # or a model that never learns would pass
    for ours_now, theirs_now in reports[:3]:
        assert theirs_now.gradient_norms == pytest.approx(ours_now.gradient_norms, rel=1e-3)
    assert_same_way(ours, theirs, start, tmp_path)
    holdout = [mean_loss(engine.scores(given[-1:])) for engine in (ours, theirs)]
    assert holdout[1] == pytest.approx(holdout[0], rel=LOSS_TOLERANCE)


def test_a_fresh_crma_begins_with_each_task(engines, encoder, tmp_path):
    (batch,) = batches(encoder, np.random.default_rng(0), 1)
    for name, engine in zip(("torch", "jax"), engines("modular-fresh"), strict=True):
        states = []
        for phase in range(2):
            engine.begin_phase(phase, 2)
            states.append(arrays(engine, tmp_path / f"{name}-{phase}"))
            engine.step([batch], 0)
        trained = arrays(engine, tmp_path / f"{name}-trained")
        shared = [key for key in trained if "lora" not in key]
        assert shared
        for key in shared:
            np.testing.assert_array_equal(states[0][key], states[1][key])
            assert not np.array_equal(trained[key], states[1][key])


@pytest.mark.parametrize("direction", ["to JAX", "to PyTorch"])
def test_what_one_engine_trains_answers_the_same_in_the_other(encoder, engines, direction, tmp_path):
    pair = engines("modular")
    source, target = pair if direction == "to JAX" else pair[::-1]
    for engine in pair:
        engine.begin_phase(0, 10)
    (batch,) = batches(encoder, np.random.default_rng(0), 1)
    untrained = mean_loss(target.scores([batch]))
    for index in range(10):  # on what is measured, which must then change, whatever was drawn
        source.step([batch], index)
    hand_over(source, target, tmp_path)
    trained = mean_loss(source.scores([batch]))
    assert mean_loss(target.scores([batch])) == pytest.approx(trained, rel=1e-5)
    assert untrained - trained > 1e-2 * trained
    assert target.spectrum()[:4] == pytest.approx(source.spectrum()[:4], rel=1e-6)


@pytest.mark.parametrize("condition", ["modular-still", "lwf", "frozen-near-base", "modular-distilled"])
def test_what_an_earlier_phase_left_takes_part_in_a_later_one_as_in_the_other_engine(
    engines, encoder, tmp_path, condition
):
    """A CRMA that is still, and the LoRA whose answers are to be kept. The first phase is PyTorch's; both train the
    second one from the same LoRA.
    """
    ours, theirs = engines(condition)
    ours.begin_phase(0, 5)
    given = batches(encoder, np.random.default_rng(0), 11)
    for index, batch in enumerate(given[:5]):
        ours.step([batch], index)
    hand_over(ours, theirs, tmp_path / "first")
    for engine in (ours, theirs):
        engine.begin_phase(1, 5)
    ours.save_phase(1, files(tmp_path / "start"))
    theirs._load_lora(files(tmp_path / "start").lora)
    before = arrays(ours, tmp_path / "before")
    reports = [(ours.step([batch], i), theirs.step([batch], i)) for i, batch in enumerate(given[5:10])]
    for mine, other in reports:
        assert other.loss == pytest.approx(mine.loss, rel=LOSS_TOLERANCE)
        assert other.gradient_norms == pytest.approx(mine.gradient_norms, rel=1e-3)
        assert set(mine.gradient_norms) == ({"lora", *CRMA} if condition == "modular-distilled" else {"lora"})
    assert_same_way(ours, theirs, before, tmp_path, moves="" if condition == "modular-distilled" else "lora_")


def test_every_row_gets_the_same_score_with_and_without_each_adapter(engines, encoder, tmp_path):
    ours, theirs = engines("modular")
    for engine in (ours, theirs):
        engine.begin_phase(0, 60)
    easy = encoder.encode([Example(letter, "ab") for letter in "xyz"], "to be recalled")
    given = [encoder.batch([[example] for example in easy]), *batches(encoder, np.random.default_rng(0), 3)]
    for index in range(60):
        ours.step([given[0]], index)
    hand_over(ours, theirs, tmp_path)
    trainable = [value.requires_grad for value in ours.slot.parameters().values()]
    both = [engine.scores(given) for engine in (ours, theirs)]
    with ours.without_crma(), theirs.without_crma():
        lora = [engine.scores(given) for engine in (ours, theirs)]
        with ours.without_lora(), theirs.without_lora():
            bare = [engine.scores(given) for engine in (ours, theirs)]
    with ours.without_lora(), theirs.without_lora():
        crma = [engine.scores(given) for engine in (ours, theirs)]
    assert [value.requires_grad for value in ours.slot.parameters().values()] == trainable
    for mine, other in (both, lora, crma, bare):
        assert [score.tokens for score in other] == [score.tokens for score in mine]
        assert [score.loss for score in other] == pytest.approx([score.loss for score in mine], rel=1e-4)
        assert [score.is_greedy for score in other] == [score.is_greedy for score in mine]
    losses = [[score.loss for score in scores] for _, scores in (both, lora, crma, bare)]
    for one, other in itertools.combinations(losses, 2):
        assert one != pytest.approx(other, rel=1e-3)
    assert theirs.scores(given) == both[1]  # and they are there again
    assert {score.is_greedy for score in both[1]} == {True, False}


def test_more_rows_than_a_batch_are_scored_as_in_several_batches(engines, encoder):
    _, theirs = engines("modular")
    theirs.begin_phase(0, 1)
    examples = [Example("abc", letter * (index + 1)) for index, letter in enumerate("abcde")]
    encoded = encoder.encode(examples, "five options, and batches of three")
    together = theirs.scores([encoder.batch([[example] for example in encoded])])
    by_itself = [theirs.scores([encoder.batch([[example]])])[0] for example in encoded]
    assert [score.loss for score in together] == pytest.approx([score.loss for score in by_itself], rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("basis", ["random", "principal"])  # the latter of the weights, which mixed precision rounds
def test_the_shared_crma_starts_from_the_same_values(engines, tiny_model, tmp_path, basis, precision):
    file = str(tiny_protocol(tmp_path, tiny_model))
    given = load_protocol(file, [f"crma.basis_start={basis}"], precision=precision)
    ours, theirs = engines("modular", given)
    for field, mine in zip(("mix_logits", "gate_logit", "basis"), ours.backbone.state(), strict=True):
        np.testing.assert_array_equal(np.asarray(getattr(theirs._stack(), field)), mine.numpy())
    assert theirs.identity == {
        "base_model": ours.backbone.base_model,
        "base_model_sha256": ours.backbone.base_model_sha256,
    }
