"""How many steps and tokens each phase has: exactly, where tokenizer and texts are here; else at most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.records import TextRecord
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import (
    IGNORED,
    EncodedExample,
    evaluation_order,
    rows_measured,
    rows_scored,
    training_order,
)
from backends.finetune.tasks.task import Task
from backends.finetune.tasks.texts import count_texts, encode_tasks

Shape = tuple[int, int, int]  # rows, tokens of the longest, answer tokens in all


@dataclass(frozen=True)
class PhaseWork:
    """One phase: the shapes of its batches in one epoch and of its task's holdout batches; tokens without padding.
    ``texts``: what max_tokens cuts, by side, where the texts are here."""

    task: str
    batches: tuple[Shape, ...]
    holdout: tuple[Shape, ...]
    tokens: int
    texts: dict[str, TextRecord] = field(default_factory=dict)

    def steps(self, epochs: int, accumulation: int) -> int:
        """Optimizer steps of so many epochs; one may take batches of two of them."""
        return -(-epochs * len(self.batches) // accumulation)

    @property
    def padded_tokens(self) -> int:
        """Tokens that are computed in one epoch."""
        return sum(rows * longest for rows, longest, _ in self.batches)

    @property
    def holdout_tokens(self) -> int:
        """Tokens that are computed for one evaluation."""
        return sum(rows * longest for rows, longest, _ in self.holdout)


def orders(protocol: Protocol) -> int:
    """How many times the tasks are gone through, each time in another order and into a run folder of its own."""
    return math.factorial(len(protocol.tasks)) if protocol.orderings == "all" else 1


def work_of(encoder: Encoder, tasks: Sequence[Task], seed: int) -> list[PhaseWork]:
    """The batches that a session makes of ``tasks``. Raises: TaskDataError."""
    work, protocol = [], encoder.protocol
    encoded = encode_tasks(tasks, encoder)
    for phase, (task, sides) in enumerate(zip(tasks, encoded, strict=True)):
        train, holdout = sides["train"], sides["holdout"]
        rows = encoder.rows(train)
        order = training_order([_length(row) for row in rows], protocol.batch_size, 1, seed=seed, phase=phase)
        batches = [_shape([rows[index] for index in indices]) for indices in order]
        of_holdout = [
            _shape([[holdout[index]] for index in indices])
            for indices in evaluation_order(holdout, protocol.batch_size, protocol.max_tokens)
        ]
        tokens = sum(len(example.ids) for example in train)
        work.append(PhaseWork(task.name, tuple(batches), tuple(of_holdout), tokens, count_texts(sides)))
    return work


def most_work(protocol: Protocol, own_tasks: Sequence[Task] = ()) -> list[PhaseWork]:
    """Every example as long as may be, and all of it counted."""

    def shapes(examples: int, together: int) -> tuple[Shape, ...]:
        full, rest = divmod(examples, together)
        sizes = [together] * full + [rest] * (rest > 0)
        return tuple((rows, protocol.max_tokens, rows * (protocol.max_tokens - 1)) for rows in sizes)

    sizes = [(task.name, len(task.train), len(task.holdout)) for task in own_tasks]
    sizes = sizes or [(name, protocol.train or 0, protocol.holdout or 0) for name in protocol.tasks]
    trained, measured = protocol.batch_size, rows_measured(protocol.batch_size, protocol.max_tokens)
    return [
        PhaseWork(name, shapes(train, trained), shapes(held, measured), train * protocol.max_tokens)
        for name, train, held in sizes
    ]


def largest(work: Sequence[PhaseWork]) -> Shape:
    """The batch of a training step with the most tokens, with as many answer tokens as any has."""
    every = [shape for phase in work for shape in phase.batches]
    rows, longest, _ = max(every, key=lambda shape: shape[0] * shape[1])
    return rows, longest, max(answers for _, _, answers in every)


def answers_scored(work: Sequence[PhaseWork], batch_size: int, vocabulary: int) -> int:
    """The most answer tokens of an evaluation that get their logits at once, by the mean of a batch's rows."""
    found = [1]
    for rows, _, answers in (shape for phase in work for shape in phase.holdout):
        each = -(-answers // rows)
        found.append(each * min(rows, rows_scored(batch_size, each, vocabulary)))
    return max(found)


def share_of_device(shape: Shape, devices: int) -> Shape:
    """The rows of a batch that one of ``devices`` processes computes at once."""
    rows = -(-shape[0] // devices)
    return rows, shape[1], -(-shape[2] * rows // shape[0])


def _length(row: Sequence[EncodedExample]) -> int:
    return sum(len(example.ids) for example in row)


def _shape(rows: Sequence[Sequence[EncodedExample]]) -> Shape:
    answers = sum(label != IGNORED for row in rows for example in row for label in example.labels[1:])
    return len(rows), max(_length(row) for row in rows), answers
