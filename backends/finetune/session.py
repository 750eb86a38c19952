"""The session: tasks in sequence, for every seed and condition, safe to interrupt at any point."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.finetune.encoding import Batch, EncodedExample, evaluation_order, training_order
from backends.finetune.engine import Engine, EngineFactory
from backends.finetune.memory_errors import memory_errors
from backends.finetune.progress import Progress
from backends.finetune.protocol import Condition, Protocol
from backends.finetune.results import RunResults, append_record, read_results
from backends.finetune.run_folder import RunFolder
from backends.finetune.tasks import Task

EVALUATION_COST = 1 / 3  # of a token that is read, beside one that is trained on


def run_session(
    protocol: Protocol,
    tasks: Mapping[int, Sequence[Task]],
    model_path: Path,
    make_engine: EngineFactory,
    folder: RunFolder,
    progress: Progress,
) -> RunResults:
    """Run every (seed, condition) of ``protocol`` that ``folder`` does not hold yet, phase by phase.

    Args:
        protocol: what to do. tasks: per seed, the tasks in order. model_path: base model folder.
        make_engine: of the backend. folder: locked and claimed by the caller. progress: shows the advance.

    Returns:
        All results of the folder.

    A phase that was interrupted continues from its last checkpoint; the final adapters have the same bits as those
    of an uninterrupted run on the same machine with as many threads. Source: paper section 6.1. Clause: CL-5.
    """
    for seed in protocol.seeds:
        for condition in protocol.conditions:
            done = len(read_results(folder.results).phases_of(condition, seed))
            if done == len(tasks[seed]):
                folder.checkpoint(seed, condition).unlink(missing_ok=True)  # killed between its last record and this
            else:
                engine = make_engine(model_path, protocol, condition, seed)
                _Branch(protocol, tasks[seed], engine, folder, condition, seed, progress).run(done)
                del engine
                gc.collect()  # a model and its hooks form cycles; two base models at once may not fit
            progress.finish_branch()
    return read_results(folder.results)


class _Branch:
    """One seed and condition."""

    def __init__(
        self,
        protocol: Protocol,
        tasks: Sequence[Task],
        engine: Engine,
        folder: RunFolder,
        condition: Condition,
        seed: int,
        progress: Progress,
    ) -> None:
        self.protocol, self.tasks, self.engine, self.folder = protocol, tasks, engine, folder
        self.condition, self.seed, self.progress = condition, seed, progress
        self.train: list[list[EncodedExample]] = [engine.encode(task.train, f"{task.name}, train") for task in tasks]
        holdout = [engine.encode(task.holdout, f"{task.name}, holdout") for task in tasks]
        self.holdout = [
            [self._batch(examples, order) for order in evaluation_order(examples, protocol.batch_size)]
            for examples in holdout
        ]

    def run(self, done: int) -> None:
        self.progress.start_branch(f"seed {self.seed} {self.condition}", self._work(range(len(self.tasks))))
        for phase in range(done):
            self.engine.restore_phase(phase, self._path(self.folder.lora, phase), self._path(self.folder.crma, phase))
        self.progress.advance(self._work(range(done)))
        for phase in range(done, len(self.tasks)):
            self._run_phase(phase)

    def _run_phase(self, phase: int) -> None:
        order = training_order(
            self.train[phase], self.protocol.batch_size, self.protocol.epochs, seed=self.seed, phase=phase
        )
        self.engine.begin_phase(phase, len(order))
        checkpoint = self.folder.checkpoint(self.seed, self.condition)
        record = self.engine.load_checkpoint(checkpoint, phase) or self._new_record(phase)
        started, seconds_before = time.monotonic(), record["seconds"]
        self.progress.describe(self.tasks[phase].name)
        for index, indices in enumerate(order):
            batch = self._batch(self.train[phase], indices)
            is_new = index >= len(record["losses"])
            if is_new:
                self._step(batch, index, record)
                record["seconds"] = seconds_before + time.monotonic() - started
                if (index + 1) % self.protocol.checkpoint_every == 0:
                    self.engine.save_checkpoint(checkpoint, record)
            self.progress.advance(batch.tokens, trained=batch.tokens if is_new else 0)
        self.engine.save_checkpoint(checkpoint, record)
        self.engine.save_phase(phase, self._path(self.folder.lora, phase), self._path(self.folder.crma, phase))
        for seen in range(phase + 1):
            self.progress.describe(f"{self.tasks[phase].name}, holdout {seen + 1}/{phase + 1}")
            with memory_errors(f"evaluation of task {self.tasks[seen].name}"):
                record["holdout"][self.tasks[seen].name] = self.engine.holdout_loss(seen, self.holdout[seen])
            self.progress.advance(EVALUATION_COST * _tokens(self.holdout[seen]))
        append_record(self.folder.results, record)
        checkpoint.unlink(missing_ok=True)

    def _step(self, batch: Batch, index: int, record: dict[str, Any]) -> None:
        with memory_errors(f"step {index + 1} on {batch.input_ids.shape[0]} x {batch.input_ids.shape[1]} tokens"):
            report = self.engine.step(batch, index)
        record["losses"].append(report.loss)
        record["tokens"] += batch.tokens
        for name, norm in report.gradient_norms.items():
            record["gradient_norms"].setdefault(name, []).append(norm)
        steps = index + 1
        last = steps == self._steps_per_phase(record["phase"])
        if steps % self.protocol.crma.log_every == 0 or last:
            spectrum = self.engine.spectrum()
            if spectrum is not None:
                log = record["spectral"] = record["spectral"] or {"steps": [], **{key: [] for key in spectrum._fields}}
                log["steps"].append(steps)
                for key, value in spectrum._asdict().items():
                    log[key].append(value)

    def _new_record(self, phase: int) -> dict[str, Any]:
        return {
            "kind": "phase",
            "condition": self.condition,
            "seed": self.seed,
            "phase": phase,
            "task": self.tasks[phase].name,
            "losses": [],
            "gradient_norms": {},
            "holdout": {},
            "seconds": 0.0,
            "tokens": 0,
            "parameters": self.engine.parameter_counts(),
            "spectral": None,
        }

    def _batch(self, examples: Sequence[EncodedExample], indices: Sequence[int]) -> Batch:
        return self.engine.batch([examples[index] for index in indices])

    def _steps_per_phase(self, phase: int) -> int:
        return self.protocol.epochs * -(-len(self.train[phase]) // self.protocol.batch_size)

    def _path(self, of: Any, phase: int) -> Path:
        path: Path = of(self.seed, self.condition, phase)
        return path

    def _work(self, phases: range) -> float:
        """Tokens to train on and, at their lower cost, to evaluate on in ``phases``."""
        trained = sum(self.protocol.epochs * sum(len(example.ids) for example in self.train[phase]) for phase in phases)
        read = sum(_tokens(self.holdout[seen]) for phase in phases for seen in range(phase + 1))
        return trained + EVALUATION_COST * read


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(batch.tokens for batch in batches)
