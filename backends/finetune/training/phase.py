"""The steps of one phase, from its last checkpoint on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.finetune.engines.engine import Engine, SpectralReport, StepReport
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import Log


def new_record(engine: Engine) -> dict[str, Any]:
    """What the steps of a phase fill in."""
    return {
        "losses": [],
        "gradient_norms": {},
        "seconds": 0.0,
        "tokens": 0,
        "parameters": engine.parameter_counts(),
        "spectral": None,
    }


class PhaseTraining:
    """Trains ``engine`` on the tasks of ``data``; ``name``: the condition's. Raises: the engine's errors."""

    def __init__(self, engine: Engine, data: EncodedTasks, progress: Progress, log: Log, name: str) -> None:
        self.engine, self.data, self.progress, self.log, self.name = engine, data, progress, log, name
        self.protocol, self.seed = data.protocol, data.seed

    def run(
        self,
        phase: int,
        checkpoint: Path,
        begin: Callable[[], dict[str, Any]],
        *,
        index: int | None = None,
        earlier_steps: int = 0,
    ) -> dict[str, Any]:
        """Train the phase to its last step, and return its record.

        Args:
            begin: makes the record where there is no checkpoint, once the engine is ready for the first step.
            index: of the task in the data, where that is not the phase.
            earlier_steps: of the phases before, for the log.
        """
        task = phase if index is None else index
        order = self.data.order(task)
        self.progress.describe(self.data.names[task])
        self.engine.begin_phase(phase, len(order))
        record = self.engine.load_checkpoint(checkpoint, phase)
        if record is None:
            record = begin()
        self.log.start(self.seed, self.name, earlier_steps + len(record["losses"]))
        started, seconds_before = time.monotonic(), record["seconds"]
        for step, rows in enumerate(order):
            tokens = sum(len(example.ids) for batch in rows for row in batch for example in self.data.rows[task][row])
            if step < len(record["losses"]):
                self.progress.skip(tokens)
                continue
            report, spectrum = self._step(task, step, rows, len(order), record)
            record["seconds"] = seconds_before + time.monotonic() - started
            rate = record["tokens"] / record["seconds"] if record["seconds"] else 0.0
            self.log.step(earlier_steps + step + 1, report.loss, report.gradient_norms, rate)
            if spectrum is not None:
                self.log.spectrum(earlier_steps + step + 1, spectrum._asdict())
            if (step + 1) % self.protocol.checkpoint_every == 0:
                self.engine.save_checkpoint(checkpoint, record)
            self.progress.advance(tokens, trained=tokens, loss=report.loss)
        return record

    def _step(
        self, task: int, index: int, rows: Sequence[Sequence[int]], steps: int, record: dict[str, Any]
    ) -> tuple[StepReport, SpectralReport | None]:
        batches, memory = self.data.batches(task, index, rows), self.data.memory(task, index)
        shapes = " and ".join(dict.fromkeys(f"{b.input_ids.shape[0]} x {b.input_ids.shape[1]}" for b in batches))
        with memory_errors(f"step {index + 1} on {shapes} tokens"):
            report = self.engine.step(batches, index, memory)
        record["losses"].append(report.loss)
        record["tokens"] += sum(batch.tokens for batch in batches)
        for name, norm in report.gradient_norms.items():
            record["gradient_norms"].setdefault(name, []).append(norm)
        is_logged = (index + 1) % self.protocol.crma.log_every == 0 or index + 1 == steps
        spectrum = self.engine.spectrum() if is_logged else None
        if spectrum is not None:
            log = record["spectral"] = record["spectral"] or {"steps": [], **{key: [] for key in spectrum._fields}}
            values = {"steps": index + 1, **spectrum._asdict()}
            for key, logged in log.items():  # those of the version that began the phase
                logged.append(values[key])
        return report, spectrum
