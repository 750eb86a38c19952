"""Elastic weight consolidation: parameters that mattered to earlier tasks are held where those tasks left them.

Source: J. Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", PNAS 114, equation 3:
``L(theta) = L_B(theta) + sum_i lambda/2 F_i (theta_i - theta*_A,i)^2``, with F the diagonal of the Fisher information;
for a third task, a penalty for each earlier one.

The sum of the penalties is kept in constant memory, since a sum of parabolas is a parabola: parameter by parameter,
``sum_t F_t (theta - theta_t)^2 = A theta^2 - 2 B theta + C``, ``A = sum_t F_t``, ``B = sum_t F_t theta_t``. Computed so
it would cancel; we keep its vertex instead, ``= A (theta - c)^2 + R``, with the Fisher-weighted mean ``c = B / A`` and
the rest ``R = sum_t F_t (theta_t - c)^2 >= 0``. A task with F at theta_t moves them by
``c += (F / A)(theta_t - c)`` and ``R += F (A_before / A)(theta_t - c_before)^2``, where A includes F: no difference of
large numbers anywhere.

Left to us: all tasks share one lambda, and each keeps its own anchor, as published. F. Huszár (2018), "Note on the
quadratic penalties in elastic weight consolidation", PNAS 115, argues for the latest anchor alone; the authors' reply
in the same volume keeps one per task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backends.finetune.methods.method import Condition, Mark, Method, Training
from backends.finetune.methods.section import Count, Factor, Section
from reference.errors import ConfigError, NonFiniteError, ShapeError, StateFileError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


class EwcSection(Section):
    """EWC: the penalty's strength lambda, and the training examples of a task from which its Fisher is estimated."""

    strength: Factor = 1.0
    examples: Count = 32


class ElasticWeightConsolidation(Method):
    """The diagonal Fisher of each task's answers, with labels drawn from the model."""

    section = EwcSection
    keeps_file = True

    def __init__(self, settings: EwcSection, training: Training) -> None:
        super().__init__(settings, training)
        self.consolidated = ConsolidatedWeights()

    @staticmethod
    def examples(settings: EwcSection) -> int:
        return settings.examples

    @staticmethod
    def held_bytes(lora: float, phases: int, answered: float) -> float:
        return 2 * lora  # importances and centres

    @staticmethod
    def kept_values(lora: int) -> int:
        return 2 * lora

    def penalty(self) -> Tensor | None:
        if not self.consolidated:
            return None
        return self.consolidated.penalty(self.slot.parameters(), self.settings.strength)

    def finish_phase(self, phase: int, examples: Iterable[Any]) -> None:
        import torch

        parameters: dict[str, Any] = self.slot.parameters()
        generator = torch.Generator().manual_seed(1_000_003 * self.training.seed + phase)
        fisher = diagonal_fisher(parameters, self._log_likelihoods(examples, generator))
        self.consolidated.add(fisher, {name: value.detach().clone() for name, value in parameters.items()})

    def _log_likelihoods(self, examples: Iterable[Any], generator: Any) -> Iterator[Tensor]:
        import torch

        for example in examples:
            log_probabilities = self.training.answer_logits(example)[0].log_softmax(-1)
            drawn = torch.multinomial(log_probabilities.detach().exp().cpu(), 1, generator=generator)
            yield log_probabilities.gather(1, drawn.to(log_probabilities.device)).sum()

    def state(self) -> dict[str, Tensor]:
        return self.consolidated.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.consolidated.load(tensors)


class ConsolidatedWeights:
    """The penalties of all finished tasks, as one: per parameter the importance A and the centre c, and one rest R."""

    def __init__(self) -> None:
        self._importance: dict[str, Tensor] = {}
        self._centre: dict[str, Tensor] = {}
        import torch

        self._rest = torch.zeros(())

    def __bool__(self) -> bool:
        """Whether a task has been added."""
        return bool(self._importance)

    def add(self, fisher: Tensors, parameters: Tensors) -> None:
        """Add a task that ended at ``parameters`` with the diagonal ``fisher`` (:func:`diagonal_fisher`).

        Raises: ConfigError for other names than before or a negative value, ShapeError, NonFiniteError; then nothing
        has changed.
        """
        import torch

        _check_layout(fisher, parameters)
        if self._importance:
            _check_layout(self._importance, parameters)
        _check_values(fisher, "Fisher information", least=0.0)
        _check_values(parameters, "parameters")
        importance, centre, rest = {}, {}, self._rest.double()
        for name, added in fisher.items():
            added, where = added.detach().float(), parameters[name].detach().float()
            before = self._importance.get(name, torch.zeros_like(where))
            old = self._centre.get(name, where)
            importance[name] = before + added
            share = torch.where(importance[name] > 0, added / importance[name], 1.0)  # 1: a weight of 0, anywhere
            moved = where - old
            centre[name] = old + share * moved
            rest = rest + (share * before * moved.square()).sum(dtype=torch.float64).to(rest.device)
        self._importance, self._centre, self._rest = importance, centre, rest.float()

    def penalty(self, parameters: Tensors, strength: float) -> Tensor:
        """``lambda/2 sum_t sum_i F_t,i (theta_i - theta_t,i)^2``, 0-d and differentiable, from the first task on.

        Args:
            parameters: theta, the names and shapes of :meth:`add`. strength: lambda >= 0.

        Raises: ConfigError, ShapeError.
        """
        import torch

        _check_layout(self._importance, parameters)
        terms = [
            (self._importance[name] * (parameter.float() - self._centre[name]).square()).sum()
            for name, parameter in parameters.items()
        ]
        distance = torch.stack(terms).sum()
        return 0.5 * strength * (distance + self._rest.to(distance.device))

    def state(self) -> dict[str, Tensor]:
        """Everything, as float32 tensors "importance.NAME", "centre.NAME" and "rest", for a safetensors file."""
        found = {f"importance.{name}": tensor.clone() for name, tensor in self._importance.items()}
        found |= {f"centre.{name}": tensor.clone() for name, tensor in self._centre.items()}
        return found | {"rest": self._rest.clone()}

    def load(self, state: Tensors) -> None:
        """Become what :meth:`state` returned. Raises: StateFileError; then nothing has changed."""
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "centre": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            if part in parts and name:
                parts[part][name] = tensor.detach().float().clone()
        importance, centre = parts["importance"], parts["centre"]
        shapes = [{name: tensor.shape for name, tensor in part.items()} for part in (importance, centre)]
        if "rest" not in state or shapes[0] != shapes[1] or len(state) != 2 * len(importance) + 1:
            raise StateFileError(
                "elastic weight consolidation",
                got=f"the keys {sorted(state)[:6]}" + (" ..." if len(state) > 6 else ""),
                allowed='"rest", and for each parameter "importance.NAME" and "centre.NAME" of one shape',
                remedy="load what state() returned",
            )
        self._importance, self._centre, self._rest = importance, centre, state["rest"].detach().float().clone()


def diagonal_fisher(parameters: Tensors, log_likelihoods: Iterable[Tensor]) -> dict[str, Tensor]:
    """``F_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2``, float32, one example at a time.

    Args:
        parameters: theta, each with requires_grad. log_likelihoods: the 0-d log-likelihood of each example, best from
            a generator, so that one graph exists at a time.

    The Fisher information, as published, takes the labels y_n from the model's own distribution: the caller samples
    them. (With the labels of the data it would be the "empirical Fisher", which vanishes where they are learned.) For a
    text the log-likelihood is the sum over the answer's tokens; left to us is to sample each token after the data's own
    prefix, in one pass, not after sampled ones: as scores of independent labels have mean zero, the expected square of
    their sum is the sum of the tokens' Fisher informations.

    Raises: ConfigError if there is no example, NonFiniteError.
    """
    import torch

    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    count = 0
    for log_likelihood in log_likelihoods:
        gradients = torch.autograd.grad(log_likelihood, list(parameters.values()), materialize_grads=True)
        for sum_of_squares, gradient in zip(total.values(), gradients, strict=True):
            sum_of_squares += gradient.detach().float().square()
        count += 1
    if count == 0:
        raise ConfigError(
            "examples of the Fisher information", got="none", allowed="at least one", remedy="give the task's examples"
        )
    fisher = {name: sum_of_squares / count for name, sum_of_squares in total.items()}
    _check_values(fisher, "Fisher information", least=0.0)
    return fisher


def _check_layout(fisher: Tensors, parameters: Tensors) -> None:
    """Raises: ConfigError or ShapeError unless both have the same names and shapes."""
    if not fisher or fisher.keys() != parameters.keys():
        raise ConfigError(
            "parameters",
            got=f"other names than those of the Fisher information: {sorted(fisher.keys() ^ parameters.keys())[:4]}",
            allowed="the same parameters in every task, at least one",
            remedy="consolidate parameters that all tasks share (the LoRA of naive)",
        )
    for name, value in fisher.items():
        if value.shape != parameters[name].shape:
            raise ShapeError(
                name,
                got=f"{tuple(parameters[name].shape)} beside a Fisher information of {tuple(value.shape)}",
                allowed="one shape for both, in every task",
                remedy="keep the sizes of the adapter from task to task",
            )


def _check_values(tensors: Tensors, what: str, *, least: float = -math.inf) -> None:
    """Raises: NonFiniteError, or ConfigError for a value below ``least``."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise NonFiniteError(
                f"{what} of {name}",
                got="NaN or infinity",
                allowed="finite values",
                remedy="look for a diverged training phase before this one",
            )
        if value.lt(least).any():
            raise ConfigError(
                f"{what} of {name}",
                got=f"{float(value.min())}",
                allowed="values of at least 0: means of squares",
                remedy="compute it by diagonal_fisher",
            )


CONDITIONS = (
    Condition(
        "ewc", "EWC", Mark("#E69F00", (0, (3, 1, 1, 1)), "<"), trains="shared", method=ElasticWeightConsolidation
    ),
)
