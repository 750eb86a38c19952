"""How long a run takes: operations over a stated throughput, or seconds a token that were measured."""

from collections.abc import Sequence
from typing import NamedTuple

from backends.finetune.methods.method import Condition
from backends.finetune.plan.trace import Cost
from backends.finetune.plan.work import PhaseWork
from backends.finetune.protocols.protocol import Protocol

UTILIZATION = (0.15, 0.5)  # of a stated peak: what small batches on a GPU reach, and what large ones do


class Rates(NamedTuple):
    """Seconds for each padded token: trained on, and evaluated."""

    train: float
    evaluate: float


def rates_from_throughput(cost: Cost, tokens: int, throughput: float, devices: int) -> Rates:
    """From the cost of ``tokens`` tokens on one of ``devices`` that do ``throughput`` operations a second each."""
    seconds = tokens * throughput * devices
    return Rates((cost.forward + cost.backward) / seconds, cost.forward / seconds)


def epoch_seconds(phase: PhaseWork, rates: Rates, condition: Condition, protocol: Protocol) -> float:
    """One epoch of training on a task that is not the first."""
    # What a method adds once a phase is left out.
    more = condition.method.work(condition.settings(protocol), protocol.batch_size, rates.evaluate / rates.train)
    return phase.padded_tokens * rates.train * more


def run_seconds(work: Sequence[PhaseWork], rates: Rates, condition: Condition, protocol: Protocol) -> float:
    """All phases of one seed, with the evaluation after each, and what a data budget reads."""
    first, *later = work
    trained = first.padded_tokens * rates.train  # with nothing to replay or to hold on to yet
    trained += sum(epoch_seconds(phase, rates, condition, protocol) for phase in later)
    evaluated = sum(work[seen].holdout_tokens for phase in range(len(work)) for seen in condition.measured(phase))
    if condition.data_budget is not None:  # the moment of each task's training texts
        evaluated += sum(phase.padded_tokens for phase in work)
    return protocol.epochs * condition.epochs * trained + evaluated * rates.evaluate
