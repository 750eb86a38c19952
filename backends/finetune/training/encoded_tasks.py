"""The tasks of one seed as batches: what each step trains on, and what is measured. Source: ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from backends.finetune.engines.engine import Engine
from backends.finetune.methods.experience_replay import memory_indices, replay_draw
from backends.finetune.protocols.conditions import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.encoding import Batch, EncodedExample, evaluation_order, training_order
from backends.finetune.tasks.packing import pack
from backends.finetune.tasks.task import Task
from backends.finetune.tasks.texts import count_texts, encode_tasks

Row = list[EncodedExample]


class EncodedTasks:
    """Tokenized once. Every draw is a function of seed, phase and step. Raises: TaskDataError."""

    def __init__(
        self, protocol: Protocol, tasks: Sequence[Task], engine: Engine, condition: Condition, seed: int
    ) -> None:
        self.protocol, self.tasks, self.engine, self.condition, self.seed = protocol, tasks, engine, condition, seed
        encoded = encode_tasks(tasks, engine.encode)
        self.texts = [count_texts(sides) for sides in encoded]
        self.train = [sides["train"] for sides in encoded]
        self.rows: list[list[Row]] = [self._rows(examples) for examples in self.train]
        self.holdout = [self._evaluation(sides["holdout"]) for sides in encoded]
        self._canaries = [sides["canaries"] for sides in encoded]

    def _rows(self, examples: Sequence[EncodedExample]) -> list[Row]:
        if not self.protocol.packing:
            return [[example] for example in examples]
        return [[examples[index] for index in row] for row in pack(examples, self.protocol.max_tokens)]

    def _evaluation(self, examples: Sequence[EncodedExample]) -> list[Batch]:
        order = evaluation_order(examples, self.protocol.batch_size)
        return [self.engine.batch([[examples[index]] for index in batch]) for batch in order]

    def order(self, phase: int) -> list[list[list[int]]]:
        """Per optimizer step of a phase: the rows of each of its batches."""
        lengths = [sum(len(example.ids) for example in row) for row in self.rows[phase]]
        p = self.protocol
        batches = training_order(lengths, p.batch_size, p.epochs, seed=self.seed, phase=phase)
        return [batches[first : first + p.accumulation] for first in range(0, len(batches), p.accumulation)]

    def batches(self, phase: int, step: int, rows: Sequence[Sequence[int]]) -> list[Batch]:
        """What one step trains on: these rows, and, with experience replay, examples of earlier tasks."""
        return [
            self.engine.batch([self.rows[phase][row] for row in batch] + self._replayed(phase, step, place))
            for place, batch in enumerate(rows)
        ]

    def _replayed(self, phase: int, step: int, place: int) -> list[Row]:
        if self.condition.baseline != "replay" or phase == 0:
            return []
        sizes = [len(memory) for memory in self._memories[:phase]]
        # A step of several batches draws for each of them
        turn = step * self.protocol.accumulation + place
        drawn = replay_draw(sizes, self.protocol.replay.batch_size, seed=self.seed, phase=phase, step=turn)
        return [[self._memories[task][index]] for task, index in drawn]

    @cached_property
    def _memories(self) -> list[list[EncodedExample]]:
        kept = self.protocol.replay.memory_per_task
        return [
            [examples[index] for index in memory_indices(len(examples), kept, seed=self.seed, task=task)]
            for task, examples in enumerate(self.train)
        ]

    def fisher_examples(self, phase: int) -> Iterator[Batch]:
        """Batches of one, from which EWC estimates what matters for a finished task."""
        count = self.protocol.ewc.examples
        for index in memory_indices(len(self.train[phase]), count, seed=self.seed, task=phase):
            yield self.engine.batch([[self.train[phase][index]]])

    def exact_match(self, task: int) -> float:
        """Fraction of a task's canaries that greedy decoding recalls, with what answers now. Clause: CL-7."""
        scored = self.engine.scores(self._evaluation(self._canaries[task]))
        return sum(score.is_greedy for score in scored) / len(scored)

    def training_tokens(self, phase: int) -> int:
        """Tokens of all epochs, replayed ones left out."""
        return self.protocol.epochs * sum(len(example.ids) for example in self.train[phase])

    def holdout_tokens(self, task: int) -> int:
        """Tokens of one evaluation."""
        return sum(batch.tokens for batch in self.holdout[task])
