"""The tasks of one seed as batches: what each step trains on, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from backends.finetune.engines.engine import Engine, RowScore, mean_loss
from backends.finetune.methods.memory import memory_indices, replay_draw
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.tasks.encoder import Encoder, Row
from backends.finetune.tasks.encoding import Batch, EncodedExample, evaluation_order, training_order
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.texts import count_texts, encode_tasks

NEAREST_BY = 32  # training examples


class Evaluation:
    """Texts to be measured, in batches of similar length."""

    def __init__(self, examples: Sequence[EncodedExample], encoder: Encoder) -> None:
        order = evaluation_order(examples, encoder.protocol.batch_size, encoder.protocol.max_tokens)
        self.batches = [encoder.batch([[examples[index]] for index in batch]) for batch in order]
        self._order = [index for batch in order for index in batch]

    def scores(self, engine: Engine) -> list[RowScore]:
        """Of each text, in the order of the examples, with what answers now."""
        found = zip(self._order, engine.scores(self.batches), strict=True)
        return [score for _, score in sorted(found, key=lambda pair: pair[0])]

    def loss(self, engine: Engine) -> float:
        """In nats per answer token."""
        return mean_loss(engine.scores(self.batches))

    def exact_match(self, engine: Engine) -> float:
        """The fraction of the texts whose answer greedy decoding gives. Clause: CL-7."""
        found = engine.scores(self.batches)
        return sum(score.is_greedy for score in found) / len(found)


class EncodedTasks:
    """Tokenized once. Every draw is a function of seed, phase and step. Raises: TaskDataError."""

    def __init__(self, job: Job) -> None:
        self.protocol, self.condition, self.seed = job.protocol, job.condition, job.seed
        self.epochs = job.protocol.epochs * job.condition.epochs
        self.encoder = Encoder(load_tokenizer(job.model), job.protocol)
        encoded = encode_tasks(job.tasks, self.encoder)
        self.names = [task.name for task in job.tasks]
        self.texts = [count_texts(sides) for sides in encoded]
        self.train = [sides["train"] for sides in encoded]
        self.rows: list[list[Row]] = [self.encoder.rows(examples) for examples in self.train]
        self.holdout = [Evaluation(sides["holdout"], self.encoder) for sides in encoded]
        self.decision = [Evaluation(sides["decision"], self.encoder) for sides in encoded]
        self.canaries = [Evaluation(sides["canaries"], self.encoder) for sides in encoded]

    def sample(self, phase: int) -> Evaluation:
        """Some of the training examples of a phase, by which the nearest earlier task is found."""
        chosen = memory_indices(len(self.train[phase]), NEAREST_BY, seed=self.seed, task=phase)
        return Evaluation([self.train[phase][index] for index in chosen], self.encoder)

    def order(self, phase: int) -> list[list[list[int]]]:
        """Per optimizer step of a phase: the rows of each of its batches."""
        lengths = [sum(len(example.ids) for example in row) for row in self.rows[phase]]
        p = self.protocol
        batches = training_order(lengths, p.batch_size, self.epochs, seed=self.seed, phase=phase)
        return [batches[first : first + p.accumulation] for first in range(0, len(batches), p.accumulation)]

    def batches(self, phase: int, step: int, rows: Sequence[Sequence[int]]) -> list[Batch]:
        """What one step trains on: these rows, and examples of earlier tasks where its method joins them."""
        joined = self.condition.method.memory == "joined"
        batches = []
        for place, batch in enumerate(rows):
            # A step of several batches draws for each of them
            turn = step * self.protocol.accumulation + place
            replayed = self._drawn(phase, turn) if joined else []
            batches.append(self.encoder.batch([self.rows[phase][row] for row in batch] + replayed))
        return batches

    def memory(self, phase: int, step: int) -> Batch | None:
        """Examples of earlier tasks that a step is given beside its batches, where its method asks for them."""
        if self.condition.method.memory != "beside" or phase == 0:
            return None
        return self.encoder.batch(self._drawn(phase, step))

    def _drawn(self, phase: int, turn: int) -> list[Row]:
        sizes = [len(memory) for memory in self._memories[:phase]]
        count = self.condition.settings(self.protocol).batch_size
        drawn = replay_draw(sizes, count, seed=self.seed, phase=phase, step=turn)
        return [[self._memories[task][index]] for task, index in drawn]

    @cached_property
    def _memories(self) -> list[list[EncodedExample]]:
        kept = self.condition.settings(self.protocol).memory_per_task
        return [
            [examples[index] for index in memory_indices(len(examples), kept, seed=self.seed, task=task)]
            for task, examples in enumerate(self.train)
        ]

    def examples_of(self, phase: int, count: int) -> Iterator[Batch]:
        """Batches of one, of a finished phase, for what its method keeps of it."""
        for index in memory_indices(len(self.train[phase]), count, seed=self.seed, task=phase):
            yield self.encoder.batch([[self.train[phase][index]]])

    def moment_batches(self, phase: int) -> list[Batch]:
        """All training examples of a finished phase once, each in a row of its own, in batches of similar length."""
        return Evaluation(self.train[phase], self.encoder).batches

    def training_tokens(self, phase: int) -> int:
        """Tokens of all epochs, replayed ones left out."""
        return self.epochs * sum(len(example.ids) for example in self.train[phase])

    def holdout_tokens(self, task: int) -> int:
        """Tokens of one evaluation."""
        return sum(batch.tokens for batch in self.holdout[task].batches)
