"""One seed and condition of a session: phase after phase, from the last checkpoint on."""

import time
from collections.abc import Sequence
from typing import Any

from backends.finetune.engines.engine import Engine, SpectralReport, StepReport
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.runs.results import append_record
from backends.finetune.runs.run_folder import PhaseFiles, RunFolder
from backends.finetune.tasks.encoding import Batch
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.questions import Question, draw_panel, grade
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import Log

EVALUATION_COST = 1 / 3  # of a token that is read, beside one that is trained on


class Branch:
    """Runs what ``folder`` does not hold yet of one seed and condition. Raises: the errors of its engine."""

    def __init__(self, job: Job, engine: Engine, folder: RunFolder, progress: Progress, log: Log) -> None:
        self.protocol, self.tasks, self.condition, self.seed = job.protocol, job.tasks, job.condition, job.seed
        self.engine, self.folder, self.progress, self.log = engine, folder, progress, log
        self.data = EncodedTasks(job)

    def run(self, done: int, *, panel: bool) -> None:
        """Phases ``done`` and later; and, with ``panel``, the questions of the inference toggle."""
        self.progress.start_branch(f"seed {self.seed} {self.condition.name}", self._work(range(len(self.tasks))))
        self.engine.restore([self._files(phase) for phase in range(done)])
        self.progress.skip(self._work(range(done)))
        for phase in range(done, len(self.tasks)):
            self._run_phase(phase)
        if panel:
            self._answer_panel()

    def measure_base(self) -> None:
        """Record the bare base model on every task. The condition is frozen, and a fresh LoRA adds nothing."""
        self.engine.begin_phase(0, 1)
        holdout = {task.name: self.engine.holdout_loss(self.data.holdout[i]) for i, task in enumerate(self.tasks)}
        exact = {task.name: self.data.exact_match(self.engine, i) for i, task in enumerate(self.tasks) if task.canaries}
        self._append({"kind": "base", "seed": self.seed, "holdout": holdout, "exact_match": exact})

    def _run_phase(self, phase: int) -> None:
        order = self.data.order(phase)
        checkpoint = self.folder.checkpoint(self.seed, self.condition.name)
        self.progress.describe(self.tasks[phase].name)
        self.engine.begin_phase(phase, len(order))
        record = self.engine.load_checkpoint(checkpoint, phase)
        if record is None:
            record = self._new_record(phase)
            if self.protocol.transfer:
                record["before"] = self.engine.holdout_loss(self.data.holdout[phase])
        earlier_steps = sum(len(self.data.order(before)) for before in range(phase))
        self.log.start(self.seed, self.condition.name, earlier_steps + len(record["losses"]))
        started, seconds_before = time.monotonic(), record["seconds"]
        for index, rows in enumerate(order):
            tokens = sum(len(example.ids) for batch in rows for row in batch for example in self.data.rows[phase][row])
            if index < len(record["losses"]):
                self.progress.skip(tokens)
                continue
            report, spectrum = self._step(phase, index, rows, len(order), record)
            record["seconds"] = seconds_before + time.monotonic() - started
            rate = record["tokens"] / record["seconds"] if record["seconds"] else 0.0
            self.log.step(earlier_steps + index + 1, report.loss, report.gradient_norms, rate)
            if spectrum is not None:
                self.log.spectrum(earlier_steps + index + 1, spectrum._asdict())
            if (index + 1) % self.protocol.checkpoint_every == 0:
                self.engine.save_checkpoint(checkpoint, record)
            self.progress.advance(tokens, trained=tokens)
        if examples := self.condition.method.examples(self.condition.settings(self.protocol)):
            self.progress.describe(f"{self.tasks[phase].name}, what {self.condition.label} keeps of it")
            self.engine.finish_phase(phase, self.data.examples_of(phase, examples))
        self.engine.save_checkpoint(checkpoint, record)
        self.engine.save_phase(phase, self._files(phase))
        record["files"] = self.folder.digests(self.seed, self.condition.name, phase)
        self._evaluate(phase, record)
        record["memory_bytes"] = self.engine.memory_bytes()
        record["texts"] = {side: counts.model_dump() for side, counts in self.data.texts[phase].items()}
        self._append(record)
        self.log.holdout(phase, record["holdout"])
        if self.engine.world.rank == 0:
            self.folder.forget(self.seed, self.condition.name, phase + 1)
        self.engine.world.barrier()

    def _step(
        self, phase: int, index: int, rows: Sequence[Sequence[int]], steps: int, record: dict[str, Any]
    ) -> tuple[StepReport, SpectralReport | None]:
        batches, memory = self.data.batches(phase, index, rows), self.data.memory(phase, index)
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
            for key, value in {"steps": index + 1, **spectrum._asdict()}.items():
                log[key].append(value)
        return report, spectrum

    def _evaluate(self, phase: int, record: dict[str, Any]) -> None:
        """Every task seen so far, each with what it answers with; the last of them is what trains on."""
        for seen in range(phase + 1):
            name = self.tasks[seen].name
            self.progress.describe(f"{self.tasks[phase].name}, holdout {seen + 1}/{phase + 1}")
            self.engine.answer_with(seen, self._files(seen))
            with memory_errors(f"evaluation of task {name}"):
                record["holdout"][name] = self.engine.holdout_loss(self.data.holdout[seen])
                if self.tasks[seen].canaries:
                    record["exact_match"][name] = self.data.exact_match(self.engine, seen)
            self.progress.advance(EVALUATION_COST * self.data.holdout_tokens(seen))

    def _answer_panel(self) -> None:
        questions = draw_panel(self.tasks, self.protocol.panel, seed=self.seed)
        with_crma: list[bool] = []
        without_crma: list[bool] = []
        cut = 0
        for index, task in enumerate(self.tasks):
            self.engine.answer_with(index, self._files(index))
            for question in (question for question in questions if question.task == task.name):
                self.progress.describe(f"panel, question {len(with_crma) + 1}/{len(questions)}")
                options = self.data.encoder.encode(question.examples, f"{question.task}, panel")
                cut += sum(option.cut > 0 for option in options)
                batch = self.data.encoder.batch([[option] for option in options])
                with_crma.append(self._is_right(question, batch))
                with self.engine.without_crma():
                    without_crma.append(self._is_right(question, batch))
        asked = [question.task for task in self.tasks for question in questions if question.task == task.name]
        panel = {"tasks": asked, "with_crma": with_crma, "without_crma": without_crma, "cut": cut}
        self._append({"kind": "panel", "condition": self.condition.name, "seed": self.seed, **panel})

    def _is_right(self, question: Question, options: Batch) -> bool:
        scores = self.engine.scores([options])
        return grade([score.loss / score.tokens for score in scores]) == question.answer

    def _new_record(self, phase: int) -> dict[str, Any]:
        return {
            "kind": "phase",
            "condition": self.condition.name,
            "seed": self.seed,
            "phase": phase,
            "task": self.tasks[phase].name,
            "losses": [],
            "gradient_norms": {},
            "holdout": {},
            "exact_match": {},
            "before": None,
            "seconds": 0.0,
            "tokens": 0,
            "parameters": self.engine.parameter_counts(),
            "spectral": None,
            "files": {},
        }

    def _append(self, record: dict[str, Any]) -> None:
        """One process writes; the others wait until they can read it."""
        if self.engine.world.rank == 0:
            append_record(self.folder.results, record)
        self.engine.world.barrier()

    def _files(self, phase: int) -> PhaseFiles:
        return self.folder.files(self.seed, self.condition.name, phase)

    def _work(self, phases: range) -> float:
        """Tokens to train on and, at their lower cost, to evaluate on in ``phases``."""
        trained = sum(self.data.training_tokens(phase) for phase in phases)
        read = sum(self.data.holdout_tokens(seen) for phase in phases for seen in range(phase + 1))
        return trained + EVALUATION_COST * read
