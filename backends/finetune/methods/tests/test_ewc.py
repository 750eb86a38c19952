"""Elastic weight consolidation: against the explicit sum over tasks, and on problems solved by hand."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from backends.finetune.methods.ewc import ConsolidatedWeights, diagonal_fisher
from reference.errors import ConfigError, NonFiniteError, ShapeError, StateFileError

SHAPES = {"a": (3, 4), "b.weight": (5,)}


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def random_task(seed: int, spread: float = 1.0, offset: float = 0.0) -> tuple[dict, dict]:
    """(Fisher information, a third of it zero; parameters at the end)."""
    draw = generator(seed)
    fisher = {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}
    fisher = {name: value * (torch.rand(value.shape, generator=draw) > 1 / 3) for name, value in fisher.items()}
    return fisher, {name: offset + spread * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def after(*tasks: tuple[dict, dict]) -> ConsolidatedWeights:
    consolidated = ConsolidatedWeights()
    for fisher, end in tasks:
        consolidated.add(fisher, end)
    return consolidated


def explicit(tasks: list[tuple[dict, dict]], parameters: dict, strength: float) -> Any:
    """lambda/2 sum_t sum_i F_t,i (theta_i - theta_t,i)^2, in float64."""
    parts = [
        (fisher[name].double() * (parameters[name].double() - end[name].double()).square()).sum()
        for fisher, end in tasks
        for name in parameters
    ]
    return 0.5 * strength * torch.stack(parts).sum()


# Near a common point far from zero (offset 100, spread 1e-2) A theta^2 - 2 B theta + C would have no digit left.
@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (1e-2, 100.0)])
def test_the_penalty_and_its_gradient_are_those_of_the_sum_over_tasks(spread, offset):
    tasks = [random_task(seed, spread, offset) for seed in range(4)]
    _, here = random_task(9, spread, offset)
    parameters = {name: nn.Parameter(tensor) for name, tensor in here.items()}
    penalty, expected = after(*tasks).penalty(parameters, 3.0), explicit(tasks, parameters, 3.0)
    assert penalty.shape == ()
    # The centre is rounded to eps * offset, which is 6e-4 of the spread; the naive form is off by more than its value.
    tolerance = 1e-5 if offset == 0 else 2e-3
    torch.testing.assert_close(penalty.double(), expected, rtol=tolerance, atol=0)
    actual, wanted = (torch.autograd.grad(each, list(parameters.values())) for each in (penalty, expected))
    for one, other in zip(actual, wanted, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_the_penalty_of_one_task_is_zero_where_it_ended():
    fisher, end = random_task(0)
    assert float(after((fisher, end)).penalty(end, 5.0)) == 0.0


def test_the_memory_does_not_grow_with_the_number_of_tasks():
    for count in range(1, 6):
        state = after(*map(random_task, range(count))).state()
        assert sum(tensor.numel() for tensor in state.values()) == 2 * (12 + 5) + 1


def test_a_parameter_that_no_task_needs_is_free():
    unneeded = {"a": torch.zeros(3)}, {"a": torch.ones(3)}
    parameters = {"a": torch.full((3,), 50.0, requires_grad=True)}
    penalty = after(unneeded, unneeded).penalty(parameters, 1.0)
    (gradient,) = torch.autograd.grad(penalty, parameters["a"])
    assert penalty.item() == 0.0
    assert (gradient == 0).all()


def test_fisher_information_of_a_softmax_against_its_closed_form():
    """Three classes, logits (theta_1 x_1, theta_2 x_2, 0): F_k = mean over inputs of x_k^2 p_k (1 - p_k), the variance
    of the score under the model's own labels; here each label comes as often as its probability says, by a factor
    sqrt(p), instead of by a sample.
    """
    theta, x = {"w": nn.Parameter(torch.tensor([0.7, -0.4]))}, torch.randn(5, 2, generator=generator(4))

    def log_probabilities() -> Any:
        return torch.cat([theta["w"] * x, torch.zeros(len(x), 1)], dim=1).log_softmax(-1)

    probabilities = log_probabilities().exp().detach()
    # sqrt(3 p) times a log-likelihood has 3 p times its squared gradient; the mean over 3 labels is the expectation.
    weighted = (
        (3 * probabilities[n, label]).sqrt() * log_probabilities()[n, label] for n in range(5) for label in range(3)
    )
    fisher = diagonal_fisher(theta, weighted)
    p = probabilities[:, :2]
    torch.testing.assert_close(fisher["w"], (x.square() * p * (1 - p)).mean(0), rtol=1e-5, atol=0)


def test_squares_are_taken_per_example_and_not_of_the_mean_gradient():
    theta = {"w": nn.Parameter(torch.zeros(1)), "unused": nn.Parameter(torch.zeros(2))}
    fisher = diagonal_fisher(theta, (sign * 3.0 * theta["w"].sum() for sign in (1, -1)))
    assert fisher["w"].tolist() == [9.0]
    assert fisher["unused"].tolist() == [0.0, 0.0]
    assert theta["w"].grad is None


def test_a_state_that_is_stored_and_loaded_has_the_same_bits(tmp_path):
    from safetensors.torch import load_file, save_file

    consolidated, again = after(*map(random_task, range(3))), ConsolidatedWeights()
    save_file(consolidated.state(), tmp_path / "state.safetensors")
    again.load(load_file(tmp_path / "state.safetensors"))
    for each in (consolidated, again):
        each.add(*random_task(7))
    here = random_task(9)[1]
    assert float(consolidated.penalty(here, 2.0)) == float(again.penalty(here, 2.0)) > 0
    assert all(tensor.dtype == torch.float32 for tensor in again.state().values())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("centre.a"),
        lambda state: state.update({"centre.a": torch.zeros(2)}),
        lambda state: state.update({"momentum.a": torch.zeros(2)}),
        lambda state: state.pop("rest"),
    ],
    ids=["missing", "shape", "stranger", "rest"],
)
def test_a_damaged_state_is_refused_and_changes_nothing(spoil):
    consolidated, here = after(random_task(0)), random_task(9)[1]
    before, state = consolidated.penalty(here, 1.0), consolidated.state()
    spoil(state)
    with pytest.raises(StateFileError):
        consolidated.load(state)
    assert consolidated.penalty(here, 1.0) == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda fisher, end: fisher["a"].fill_(-1.0), ConfigError),
        (lambda fisher, end: fisher["a"].fill_(float("nan")), NonFiniteError),
        (lambda fisher, end: end["a"].fill_(float("inf")), NonFiniteError),
        (lambda fisher, end: fisher.pop("a"), ConfigError),
        (lambda fisher, end: end.update(a=torch.zeros(2)), ShapeError),
    ],
    ids=["negative", "nan", "diverged", "missing", "shape"],
)
def test_a_task_that_does_not_fit_is_refused_and_changes_nothing(change, error):
    consolidated = after(random_task(0))
    before = consolidated.state()
    fisher, end = random_task(1)
    change(fisher, end)
    with pytest.raises(error):
        consolidated.add(fisher, end)
    assert all(torch.equal(tensor, before[key]) for key, tensor in consolidated.state().items())


def test_no_example_has_no_fisher_information():
    with pytest.raises(ConfigError, match="at least one"):
        diagonal_fisher({"w": nn.Parameter(torch.zeros(1))}, [])
