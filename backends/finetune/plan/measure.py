"""Seconds a token of a condition on this machine: three steps, an evaluation, after a first of each."""

import gc
import time
from collections.abc import Sequence

import numpy as np

from backends.finetune.engines.engine import Engine, EngineFactory
from backends.finetune.plan.duration import Rates
from backends.finetune.plan.work import PhaseWork, Shape
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.encoding import IGNORED, Batch
from backends.finetune.tasks.job import Job

STEPS = 3


def measure(job: Job, work: Sequence[PhaseWork], make_engine: EngineFactory) -> Rates:
    """Seconds for each padded token, of batches with the shapes of a quarter, a half and three quarters of all of them.

    Raises: as the engine does.
    """
    engine, protocol = make_engine(job), job.protocol
    shapes = spread([shape for phase in work for shape in phase.batches])
    engine.begin_phase(0, STEPS + 1)
    _train(engine, shapes[-1], protocol, 0)
    seconds = [_train(engine, shape, protocol, index + 1) for index, shape in enumerate(shapes)]
    tokens = protocol.accumulation * sum(rows * longest for rows, longest, _ in shapes)
    held_out = [random_batch(shape) for shape in spread([shape for phase in work for shape in phase.holdout])]
    engine.scores(held_out[:1])
    started = time.perf_counter()
    engine.scores(held_out)
    evaluated = time.perf_counter() - started
    del engine
    gc.collect()
    return Rates(sum(seconds) / tokens, evaluated / sum(batch.input_ids.size for batch in held_out))


def extrapolate(few: Rates, more: Rates, depths: tuple[int, int], layers: int) -> Rates:
    """To another number of layers: a straight line through two of them."""

    def line(a: float, b: float) -> float:
        return a + (b - a) * (layers - depths[0]) / (depths[1] - depths[0])

    return Rates(line(few.train, more.train), line(few.evaluate, more.evaluate))


def spread(shapes: Sequence[Shape]) -> list[Shape]:
    """Those at a quarter, a half and three quarters, by their tokens."""
    ordered = sorted(shapes, key=lambda shape: shape[0] * shape[1])
    return [ordered[len(ordered) * quarter // 4] for quarter in (1, 2, 3)]


def random_batch(shape: Shape, seed: int = 0) -> Batch:
    """Random tokens; as many of them are counted as the shape says, at the end of each row."""
    rows, longest, answers = shape
    ids = np.random.default_rng(seed).integers(3, 200, (rows, longest))
    labels = ids.copy()
    labels[:, : longest - max(1, round(answers / rows))] = IGNORED
    return Batch(ids, np.ones_like(ids), labels)


def _train(engine: Engine, shape: Shape, protocol: Protocol, index: int) -> float:
    batches = [random_batch(shape, index * protocol.accumulation + part) for part in range(protocol.accumulation)]
    started = time.perf_counter()
    engine.step(batches, index)  # reads the loss, and so waits for it
    return time.perf_counter() - started
