"""What a task is measured by: loss and exact match on its own texts, read as its own phase read them."""

import math
from collections.abc import Sequence
from typing import Any

from backends.finetune.engines.engine import Engine, mean_loss
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.assistant_records import LearnedRecord, Measure
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import Batch, evaluation_order
from backends.finetune.tasks.task import Example
from reference.errors import NonFiniteError


def measured(engine: Engine, batches: Sequence[Batch], what: str) -> Measure:
    """Of what answers now. Raises: NonFiniteError; OutOfMemoryError."""
    with memory_errors(f"evaluation of {what}"):
        scores = engine.scores(batches)
    loss = mean_loss(scores)
    if not math.isfinite(loss) or loss <= 0:
        raise NonFiniteError(
            f"loss of {what}",
            got=loss,
            allowed="a finite number > 0",
            remedy="teach the task again with a lower lora.learning_rate",
        )
    return Measure(loss=loss, exact_match=sum(score.is_greedy for score in scores) / len(scores))


def batches_of(examples: Sequence[Example], tokenizer: Any, protocol: Protocol, record: LearnedRecord) -> list[Batch]:
    """A task's texts, cut where its own phase cut them, so that its losses compare.

    ``protocol``: of the phase that measures; its batch size is what fits the machine.
    """
    own = protocol.model_copy(update={"max_tokens": record.config["max_tokens"], "packing": False})
    encoder = Encoder(tokenizer, own)
    encoded = encoder.encode(examples, record.task)
    order = evaluation_order(encoded, own.batch_size, own.max_tokens)
    return [encoder.batch([[encoded[index]] for index in rows]) for rows in order]
