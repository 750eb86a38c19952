"""One seed and condition of a session: phase after phase, from the last checkpoint on."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from backends.finetune.engines.engine import Engine, mean_loss
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.runs.records import PhaseRecord
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.runs.run_folder import PhaseFiles, RunFolder
from backends.finetune.tasks.encoding import Batch
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.named import domain_of
from backends.finetune.tasks.questions import Question, draw_panel, grade
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.phase import PhaseTraining, new_record
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import Log
from reference.ratchet import ratchet_moves

EVALUATION_COST = 1 / 3  # of a token that is read, beside one that is trained on


class Branch:
    """Runs what ``folder`` does not hold yet of one seed and condition. Raises: the errors of its engine."""

    def __init__(self, job: Job, engine: Engine, folder: RunFolder, progress: Progress, log: Log) -> None:
        self.protocol, self.tasks, self.condition, self.seed = job.protocol, job.tasks, job.condition, job.seed
        self.engine, self.folder, self.progress, self.log = engine, folder, progress, log
        self.data = EncodedTasks(job)
        self.finished: list[dict[str, Any]] = []  # the records of the finished phases
        self.versions: list[int] = []  # the phase whose CRMA each task answers with, where a ratchet decides

    def run(self, finished: Sequence[PhaseRecord], *, panel: bool) -> None:
        """The phases behind the ``finished`` ones; and, with ``panel``, the questions of the inference toggle."""
        done = len(finished)
        self.finished = [record.model_dump() for record in finished]
        if finished:
            self.versions = [finished[-1].versions.get(task.name, 0) for task in self.tasks[:done]]
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
        holdout = {task.name: self.data.holdout[i].loss(self.engine) for i, task in enumerate(self.tasks)}
        asked = {task.name: self.data.canaries[i] for i, task in enumerate(self.tasks) if task.canaries}
        exact = {name: canaries.exact_match(self.engine) for name, canaries in asked.items()}
        self._append({"kind": "base", "seed": self.seed, "holdout": holdout, "exact_match": exact})

    def _run_phase(self, phase: int) -> None:
        checkpoint = self.folder.checkpoint(self.seed, self.condition.name)
        training = PhaseTraining(self.engine, self.data, self.progress, self.log, self.condition.name)
        earlier_steps = sum(len(self.data.order(before)) for before in range(phase))
        record = training.run(phase, checkpoint, lambda: self._new_record(phase), earlier_steps=earlier_steps)
        examples: Iterable[Batch] = ()
        if self.condition.data_budget is not None:
            examples = self.data.moment_batches(phase)
        elif count := self.condition.method.examples(self.condition.settings(self.protocol)):
            examples = self.data.examples_of(phase, count)
        if examples:
            self.progress.describe(f"{self.tasks[phase].name}, what {self.condition.label} keeps of it")
            with memory_errors(f"what {self.condition.label} keeps of task {self.tasks[phase].name}"):
                self.engine.finish_phase(phase, examples)
            self.progress.advance(EVALUATION_COST * self._gathered(phase))
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

    def _start(self, phase: int) -> str | None:
        """Start from an earlier task's LoRA where the condition says so, and return the task's name."""
        if phase == 0 or self.condition.start == "fresh":
            return None
        chosen = phase - 1
        if self.condition.start == "nearest":
            sample = self.data.sample(phase)
            losses = []
            for earlier in range(phase):
                self.engine.start_from(self._files(earlier))
                losses.append(sample.loss(self.engine))
            chosen = losses.index(min(losses))
        self.engine.start_from(self._files(chosen))
        return self.tasks[chosen].name

    def _evaluate(self, phase: int, record: dict[str, Any]) -> None:
        """Every task seen so far, each with what it answers with; the last of them is what trains on."""
        if self.condition.ratchet:
            self._turn_ratchet(phase, record)
        for seen in range(phase + 1):
            name = self.tasks[seen].name
            self.progress.describe(f"{self.tasks[phase].name}, holdout {seen + 1}/{phase + 1}")
            self.engine.answer_with(seen, self._answering(seen, phase))
            if seen < phase and self._serving(seen, record) == self._serving(seen, self.finished[-1]) != []:
                for kind in ("holdout", "exact_match", "text_losses"):
                    if name in self.finished[-1][kind]:
                        record[kind][name] = self.finished[-1][kind][name]
                continue
            with memory_errors(f"evaluation of task {name}"):
                scores = self.data.holdout[seen].scores(self.engine)
                if self.tasks[seen].canaries:
                    record["exact_match"][name] = self.data.canaries[seen].exact_match(self.engine)
            record["holdout"][name] = mean_loss(scores)
            record["text_losses"][name] = [score.loss for score in scores]
            if seen == phase:
                record["answer_tokens"] = [score.tokens for score in scores]
            self.progress.advance(EVALUATION_COST * self.data.holdout_tokens(seen))
        self.finished.append(record)

    def _serving(self, seen: int, record: dict[str, Any]) -> list[str]:
        """The digests of what a task is answered with after the phase of ``record``: where they are equal, so is every
        loss, and nothing is measured twice."""
        records = [*self.finished, record]  # the same one twice in a row does no harm
        own = self._lora_of(seen, record["phase"]) if self.condition.trains == "per-task" else record["phase"]
        version = seen if self.condition.pinned else record["phase"]
        version = record["versions"].get(self.tasks[seen].name, version)
        lora = (digest for path, digest in records[own]["files"].items() if not _is_shared(path))
        crma = (digest for path, digest in records[version]["files"].items() if _is_shared(path))
        return [*lora, *crma]

    def _turn_ratchet(self, phase: int, record: dict[str, Any]) -> None:
        """Which earlier tasks move to the CRMA of this phase. Clause: CL-11."""
        losses = []
        for seen, version in enumerate(self.versions):
            self.progress.describe(f"{self.tasks[phase].name}, decision {seen + 1}/{phase}")
            of_task = []
            for candidate in (version, phase):
                self.engine.answer_with(seen, self._answering(seen, phase, candidate))
                of_task.append(self.data.decision[seen].loss(self.engine))
            losses.append(of_task)
        moves = ratchet_moves([old for old, _ in losses], [new for _, new in losses])
        self.versions = [phase if moved else old for moved, old in zip(moves, self.versions, strict=True)] + [phase]
        names = [task.name for task in self.tasks]
        record["versions"] = dict(zip(names, self.versions, strict=False))
        record["decision"] = dict(zip(names, losses, strict=False))

    def _answer_panel(self) -> None:
        questions = draw_panel(self.tasks, self.protocol.panel, seed=self.seed)
        ways = {
            "with_crma": [],
            "without_crma": [self.engine.without_crma],
            "without_lora": [self.engine.without_lora],
            "without_both": [self.engine.without_crma, self.engine.without_lora],
        }
        answers: dict[str, list[bool]] = {way: [] for way in ways}
        asked: list[str] = []
        cut = 0
        for index, task in enumerate(self.tasks):
            self.engine.answer_with(index, self._answering(index, len(self.tasks) - 1))
            for question in (question for question in questions if question.task == task.name):
                asked.append(task.name)
                self.progress.describe(f"panel, question {len(asked)}/{len(questions)}")
                options = self.data.encoder.encode(question.examples, f"{question.task}, panel")
                cut += sum(option.cut > 0 for option in options)
                batch = self.data.encoder.batch([[option] for option in options])
                for way, switches in ways.items():
                    with ExitStack() as switched:
                        for switch in switches:
                            switched.enter_context(switch())
                        answers[way].append(self._is_right(question, batch))
        panel = {"tasks": asked, **answers, "cut": cut}
        self._append({"kind": "panel", "condition": self.condition.name, "seed": self.seed, **panel})

    def _is_right(self, question: Question, options: Batch) -> bool:
        scores = self.engine.scores([options])
        return grade([score.loss / score.tokens for score in scores]) == question.answer

    def _new_record(self, phase: int) -> dict[str, Any]:
        record = new_record(self.engine) | {
            "kind": "phase",
            "condition": self.condition.name,
            "seed": self.seed,
            "phase": phase,
            "task": self.tasks[phase].name,
            "holdout": {},
            "text_losses": {},
            "exact_match": {},
            "versions": {},
            "start": self._start(phase),
            "before": None,
            "files": {},
        }
        if self.protocol.transfer:
            record["before"] = self._before(phase)
        return record

    def _before(self, phase: int) -> float:
        """Of the task's holdout before its training. A fresh LoRA adds 0: without CRMA it is the bare model's."""
        is_fresh = self.condition.trains != "full" and phase == 0
        is_fresh |= self.condition.trains == "per-task" and self.condition.start == "fresh"
        base = read_results(self.folder.results).base.get(self.seed)
        if is_fresh and self.condition.crma == "none" and base is not None:
            return base.holdout[self.tasks[phase].name]
        return self.data.holdout[phase].loss(self.engine)

    def _append(self, record: dict[str, Any]) -> None:
        """One process writes; the others wait until they can read it."""
        if self.engine.world.rank == 0:
            append_record(self.folder.results, record)
        self.engine.world.barrier()

    def _files(self, phase: int) -> PhaseFiles:
        return self.folder.files(self.seed, self.condition.name, phase)

    def _lora_of(self, seen: int, phase: int) -> int:
        return self.condition.lora_of(seen, [domain_of(task.name) for task in self.tasks[: phase + 1]])

    def _answering(self, seen: int, phase: int, version: int | None = None) -> PhaseFiles:
        """What a task is answered with after a phase: a LoRA, and the CRMA of a version where a ratchet decides."""
        version = (self.versions[seen] if version is None else version) if self.condition.ratchet else seen
        return self._files(seen)._replace(
            lora=self._files(self._lora_of(seen, phase)).lora, crma=self._files(version).crma
        )

    def _work(self, phases: range) -> float:
        """Tokens to train on and, at their lower cost, to evaluate on in ``phases``."""
        trained = sum(self.data.training_tokens(phase) for phase in phases)
        read = sum(self.data.holdout_tokens(seen) for phase in phases for seen in self.condition.measured(phase))
        return trained + EVALUATION_COST * (read + sum(map(self._gathered, phases)))

    def _gathered(self, phase: int) -> int:
        """Tokens that a moment is taken of behind a phase."""
        return 0 if self.condition.data_budget is None else self.data.training_tokens(phase) // self.data.epochs


def _is_shared(path: str) -> bool:
    """Whether a file of a phase holds the shared state, whose version a condition chooses."""
    return path.rpartition("/")[2].startswith(("crma-", "mixing-"))
