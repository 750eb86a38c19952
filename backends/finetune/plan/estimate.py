"""The plan of a run: counts, work, memory, time and disk of each of its conditions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.finetune.methods.method import Condition
from backends.finetune.plan.counts import Counts, count_parameters
from backends.finetune.plan.duration import UTILIZATION, Rates, epoch_seconds, rates_from_throughput, run_seconds
from backends.finetune.plan.memory import (
    Parts,
    disk_bytes,
    is_rounded,
    logit_bytes,
    method_bytes,
    scored_bytes,
    trainable_bytes,
    weight_bytes,
)
from backends.finetune.plan.skeleton import read_architecture
from backends.finetune.plan.trace import Cost, Setting, crma_cost, trace
from backends.finetune.plan.work import PhaseWork, Shape, answers_scored, largest, share_of_device
from backends.finetune.protocols.protocol import Protocol

Range = tuple[float, float]
NOTHING = Cost(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Machine:
    """``devices`` like one another, of the kind ``device`` ("cpu", "cuda"); ``shard``: the frozen weights are spread
    over them. ``libraries``: bytes of a process before it loads a model. ``peak``: operations a second of one device.
    ``every_logit``: a step has the logits of every token, as on JAX, which has no shapes that depend on the answers.
    """

    device: str = "cpu"
    devices: int = 1
    shard: bool = False
    libraries: float = 0.0
    peak: float | None = None
    every_logit: bool = False


@dataclass(frozen=True)
class ConditionPlan:
    """One condition: values trained, by part; bytes of one device, by part, and in all with the opposite of the
    protocol's gradient checkpointing; operations of the largest batch; from fastest to slowest, seconds of one epoch of
    the longest task, and of all phases of one seed; bytes on disk of one seed.
    """

    trainable: dict[str, int]
    memory: Parts
    other_memory: float
    operations: Cost
    epoch: Range | None
    run: Range | None
    disk: float

    @property
    def peak(self) -> float:
        """Bytes of one device in all."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """What a protocol needs on a machine. ``batch``: the largest, as one device has it."""

    counts: Counts
    work: Sequence[PhaseWork]
    batch: Shape
    conditions: dict[str, ConditionPlan]


def make_plan(
    folder: Path,
    protocol: Protocol,
    work: Sequence[PhaseWork],
    machine: Machine,
    measured: Mapping[str, Rates] | None = None,
) -> Plan:
    """Plan a run.

    Args:
        folder: of the base model; its weights are not read, and need not be there.
        work: the phases. measured: seconds a token, by condition, in place of those from ``machine.peak``.

    Raises: ModelError, ProtocolError for LoRA's target modules.
    """
    config = read_architecture(folder)
    counts, batch = count_parameters(config, protocol), share_of_device(largest(work), machine.devices)
    estimator = _Estimator(config, counts, batch, protocol, work, machine, measured or {})
    return Plan(counts, work, batch, {name: estimator.condition(name) for name in protocol.conditions})


@dataclass(frozen=True)
class _Estimator:
    config: Any
    counts: Counts
    batch: Shape
    protocol: Protocol
    work: Sequence[PhaseWork]
    machine: Machine
    measured: Mapping[str, Rates]
    traced: dict[tuple[bool, bool, Shape], tuple[Cost, Cost]] = field(default_factory=dict)

    def condition(self, name: str) -> ConditionPlan:
        condition, checkpoint = self.protocol.condition(name), self.protocol.gradient_checkpointing
        trainable = self.counts.trainable(name, self.protocol.lora.rank)
        operations = self._operations(condition, checkpoint)
        epoch = run = None
        if rates := self._rates(condition, operations):
            longest = max(self.work, key=lambda phase: phase.padded_tokens)
            epoch = _range(epoch_seconds(longest, rate, condition, self.protocol) for rate in rates)
            run = _range(run_seconds(self.work, rate, condition, self.protocol) for rate in rates)
        return ConditionPlan(
            trainable=trainable,
            memory=self._memory(condition, trainable, checkpoint),
            other_memory=sum(self._memory(condition, trainable, not checkpoint).values()),
            operations=operations,
            epoch=epoch,
            run=run,
            disk=disk_bytes(condition, trainable, len(self.work)),
        )

    def _batch(self, condition: Condition) -> Shape:
        """The largest, with the examples that experience replay puts beside it."""
        rows, tokens, answers = self.batch
        if self.machine.every_logit:
            answers = rows * tokens
        if condition.method.memory != "joined" or len(self.work) == 1:
            return rows, tokens, answers
        kept = -(-condition.settings(self.protocol).batch_size // self.machine.devices)
        return rows + kept, tokens, answers + kept * (tokens - 1)

    def _cost(self, condition: Condition, checkpoint: bool) -> tuple[Cost, Cost]:
        full, batch = condition.trains == "full", self._batch(condition)
        key = (checkpoint, full, batch)
        if key not in self.traced:
            lora, fused = None if full else self.protocol.lora, self.machine.device == "cuda"
            setting = Setting(*batch, self.protocol.precision, lora, checkpoint, fused)
            self.traced[key] = trace(self.config, setting)
        return self.traced[key]

    def _adapters(self, condition: Condition) -> Cost:
        if condition.crma == "none":
            return NOTHING
        tokens, is_half = self.batch[0] * self.batch[1], self.protocol.precision == "bfloat16"
        return crma_cost(self.counts.hidden_size, self.counts.layers, tokens, self.protocol.crma, bfloat16=is_half)

    def _operations(self, condition: Condition, checkpoint: bool) -> Cost:
        whole, adapters = self._cost(condition, checkpoint)[0], self._adapters(condition)
        again = adapters.forward if checkpoint else 0.0
        return Cost(
            whole.kept + adapters.kept, whole.forward + adapters.forward, whole.backward + adapters.backward + again
        )

    def _memory(self, condition: Condition, trainable: dict[str, int], checkpoint: bool) -> Parts:
        full = condition.trains == "full"
        whole, adapters = self._cost(condition, checkpoint)[0], self._adapters(condition)
        weights = weight_bytes(self.counts, self.protocol, full=full, shard=self.machine.shard)
        answers, vocabulary = self._batch(condition)[2], self.config.vocab_size
        logits = logit_bytes(vocabulary, answers)
        parts = {
            "libraries": self.machine.libraries,
            "weights": weights / self.machine.devices if self.machine.shard else weights,
            **trainable_bytes(trainable),
            "activations": whole.kept,
            "CRMA, activations": adapters.kept,
            "logits": logits,
            "method": method_bytes(condition, trainable, len(self.work), 4.0 * answers * vocabulary),
        }
        if checkpoint:  # one block's activations at a time, when the logits are gone
            block = self._cost(condition, False)[1].kept
            of_crma = adapters.kept / self.counts.layers
            parts |= {"CRMA, activations": of_crma, "logits": max(logits, block + of_crma)}
        # with every logit an evaluation has the rows of a step
        scored = 0 if self.machine.every_logit else answers_scored(self.work, self.protocol.batch_size, vocabulary)
        kept = parts["activations"] + parts["CRMA, activations"]  # of a step; an evaluation keeps nothing
        parts["logits"] = max(parts["logits"], scored_bytes(vocabulary, scored, self.protocol) - kept)
        loaded = parts["libraries"]
        if is_rounded(self.protocol, full=full, shard=self.machine.shard):
            loaded += 4.0 * self.counts.base
        return parts | {"more, while loaded": max(0.0, loaded - sum(parts.values()))}

    def _rates(self, condition: Condition, operations: Cost) -> list[Rates]:
        if condition.name in self.measured:
            return [self.measured[condition.name]]
        peak, devices = self.machine.peak, self.machine.devices
        if peak is None:
            return []
        rows, tokens, _ = self._batch(condition)
        return [rates_from_throughput(operations, rows * tokens, peak * share, devices) for share in UTILIZATION]


def _range(values: Iterable[float]) -> Range:
    ordered = sorted(values)
    return ordered[0], ordered[-1]
