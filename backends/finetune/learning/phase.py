"""One phase of an assistant: the new task is trained, and the ratchet turns for the earlier ones."""

from collections.abc import Mapping
from typing import Any

from backends.finetune.engines.engine import Engine, mean_loss
from backends.finetune.learning.data import read_texts
from backends.finetune.learning.lesson import Lesson
from backends.finetune.learning.measure import batches_of, measured
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder, Taught
from backends.finetune.runs.assistant_records import Check
from backends.finetune.runs.run_folder import PhaseFiles
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.phase import PhaseTraining, new_record
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import NO_LOG
from reference.errors import PromiseBrokenError
from reference.ratchet import broken_promises, ratchet_moves


class LessonPhase:
    """One phase: what is trained, and what it does to the earlier tasks."""

    def __init__(
        self,
        engine: Engine,
        folder: AssistantFolder,
        assistant: Assistant,
        taught: EncodedTasks,
        lesson: Lesson,
        phase: int,
        progress: Progress,
    ) -> None:
        self.engine, self.folder, self.assistant, self.taught = engine, folder, assistant, taught
        self.lesson, self.phase, self.progress = lesson, phase, progress
        self.protocol, self.tokenizer = taught.protocol, taught.encoder.tokenizer

    def run(self) -> dict[str, Any]:
        """Train and measure. Raises: PromiseBrokenError, after the folder has become what it was before."""
        folder, name, files = self.folder, self.lesson.task, self.folder.files(self.phase)
        self.progress.start_branch(name, self.taught.training_tokens(0))
        if self.lesson.start == "distilled" and self.assistant.tasks:  # whose answers it is held near
            self.engine.start_from(self._lora_of(next(reversed(self.assistant.tasks))))
        training = PhaseTraining(self.engine, self.taught, self.progress, NO_LOG, name)
        record = training.run(self.phase, folder.checkpoint, self._begin, index=0)
        if self.protocol.crma.data_budget is not None:
            self.progress.describe(f"{name}, what the data budget keeps of it")
            with memory_errors(f"what the data budget keeps of task {name}"):
                self.engine.finish_phase(self.phase, self.taught.moment_batches(0))
        self.engine.save_checkpoint(folder.checkpoint, record)
        self.engine.save_phase(self.phase, files)
        record["files"] = folder.digests(self.phase, self.protocol)
        self.engine.answer_with(self.phase, files)
        record["own"] = measured(self.engine, self.taught.holdout[0].batches, name).model_dump()
        checks, versions = self._turn_ratchet()
        self._keep_promise(checks)
        record["checked"] = {earlier: check.model_dump() for earlier, check in checks.items()}
        record["versions"] = versions | {name: self.phase}
        record["promise"] = None if self.lesson.promise is None else self.lesson.promise / 100
        record["memory_bytes"] = self.engine.memory_bytes()
        record["texts"] = {side: counts.model_dump() for side, counts in self.taught.texts[0].items()}
        self.progress.finish_branch()
        return record

    def _begin(self) -> dict[str, Any]:
        """The record of a phase that starts, whose LoRA is fresh and adds nothing yet."""
        self.progress.describe(f"{self.lesson.task}, the bare model")
        with self.engine.without_crma():
            bare = measured(self.engine, self.taught.holdout[0].batches, f"the bare model on {self.lesson.task}")
        start = self._start()
        return new_record(self.engine) | {
            "phase": self.phase,
            "task": self.lesson.task,
            "bare": bare.model_dump(),
            "start": start,
            "distilled": start is not None and self.lesson.start == "distilled",
        }

    def _start(self) -> str | None:
        """Start from an earlier task's LoRA where that is asked for, and return the task's name."""
        tasks = self.assistant.tasks
        if self.lesson.start == "fresh" or not tasks:
            return None
        chosen = next(reversed(tasks))
        if self.lesson.start == "nearest":
            sample = self.taught.sample(0)
            losses = {}
            for name in tasks:
                self.engine.start_from(self._lora_of(name))
                losses[name] = sample.loss(self.engine)
            chosen = min(losses, key=lambda name: losses[name])
        self.engine.start_from(self._lora_of(chosen))
        return chosen

    def _lora_of(self, name: str) -> PhaseFiles:
        return self.folder.files(self.assistant.tasks[name].record.phase)

    def _turn_ratchet(self) -> tuple[dict[str, Check], dict[str, int]]:
        """Measure the earlier tasks, and the version that each answers with from now on. Clause: CL-11."""
        checks: dict[str, Check] = {}
        versions = {name: task.version for name, task in self.assistant.tasks.items()}
        chosen = self.lesson.checked(self.assistant)
        for number, (name, task) in enumerate(chosen.items(), start=1):
            self.progress.describe(f"{self.lesson.task}, earlier task {number}/{len(chosen)}")
            checks[name] = self._check(name, task)
            if ratchet_moves(*([loss] for loss in checks[name].decision))[0]:
                versions[name] = self.phase
        return checks, versions

    def _check(self, name: str, task: Taught) -> Check:
        texts = read_texts(self.folder.texts(task.record.phase))
        decision, reported = (
            batches_of(examples, self.tokenizer, self.protocol, task.record)
            for examples in (texts.decision, texts.reported)
        )
        self.engine.answer_with(self.phase, self.folder.files(task.record.phase, task.version))
        before = measured(self.engine, reported, name)
        answering = mean_loss(self.engine.scores(decision))
        self.engine.answer_with(self.phase, self.folder.files(task.record.phase, self.phase))
        shared = mean_loss(self.engine.scores(decision))
        moves = ratchet_moves([answering], [shared])[0]
        now = measured(self.engine, reported, name) if moves else before
        return Check(decision=(answering, shared), before=before, now=now)

    def _keep_promise(self, checks: Mapping[str, Check]) -> None:
        """Clause: CL-12."""
        if self.lesson.promise is None or not checks:
            return
        own = [self.assistant.tasks[name].record.own.loss for name in checks]
        before, now = ([getattr(check, side).loss for check in checks.values()] for side in ("before", "now"))
        broken = broken_promises(own, before, now, self.lesson.promise / 100)
        lost = [
            f"{name} {100 * (after / first - 1):+.2f}%"
            for name, first, after, is_broken in zip(checks, own, now, broken, strict=True)
            if is_broken
        ]
        if lost:
            self.folder.drop_phase(self.phase)
            raise PromiseBrokenError(
                f"promise of {self.lesson.promise:g}%",
                got=f"after {self.lesson.task}: {', '.join(lost)} on the reported texts since its own phase",
                allowed=f"at most {self.lesson.promise:+g}%; the folder is as it was before",
                remedy="teach it with --check none, so that every earlier task answers as before; or with a smaller "
                f"crma.{'displacement' if self.protocol.crma.data_budget is None else 'data'}_budget",
            )
