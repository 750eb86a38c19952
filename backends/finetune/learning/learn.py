"""Teach an assistant one more task: train, let the ratchet turn, keep the promise, write it down."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from backends import load_backend
from backends.atomic import atomic_write
from backends.files import read_json
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.engine import Engine
from backends.finetune.learning.answers import sample_answers
from backends.finetune.learning.data import (
    Splits,
    Texts,
    digest_of,
    read_examples,
    read_texts,
    split_examples,
    texts_file,
)
from backends.finetune.learning.measure import batches_of, measured
from backends.finetune.learning.settings import task_protocol
from backends.finetune.learning.status import show_status
from backends.finetune.methods.conditions import KNOWN
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.fingerprint import check_fingerprint, model_fingerprint
from backends.finetune.models.folder import load_config, load_tokenizer
from backends.finetune.models.limits import limits_of
from backends.finetune.models.marker import is_random
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.protocols.supported import check_supported
from backends.finetune.report.terminal import Terminal
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder, Taught
from backends.finetune.runs.assistant_records import Check
from backends.finetune.runs.results import append_record
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import Task
from backends.finetune.tasks.texts import said_of
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.phase import PhaseTraining, new_record
from backends.finetune.training.progress import Progress
from backends.finetune.training.run_identity import digest_of as digest_of_json
from backends.finetune.training.run_identity import run_record
from backends.finetune.training.tensorboard import NO_LOG
from backends.finetune.training.threads import set_up_framework
from reference.errors import BackendError, ConfigError, ModelError, PromiseBrokenError, RunFolderError, TaskDataError
from reference.ratchet import broken_promises, ratchet_moves

RECENT = 8  # earlier tasks that --check recent measures
Checks = Literal["all", "recent", "none"]
Start = Literal["fresh", "last", "nearest"]


@dataclass(frozen=True)
class Lesson:
    """What is taught, and how.

    Attributes:
        data: a file, a folder or OWNER/NAME of a dataset. name: of the task; by default from the data's.
        holdout: a file of its own for what is reported. columns, split: see
            :func:`backends.finetune.learning.data.read_examples`. settings: FIELD=VALUE of a protocol.
        template: the chat template, "auto", "none" or a file. start: where its LoRA starts. check: which earlier tasks
            are measured and may move. promise: the most, in percent, that any of them may lose. discard: whether a
            phase that was interrupted is given up.
    """

    data: str
    name: str = ""
    holdout: str | None = None
    columns: Mapping[str, str] | None = None
    split: str = "train"
    settings: Sequence[str] = ()
    template: str | None = None
    start: Start = "fresh"
    check: Checks = "all"
    promise: float | None = None
    discard: bool = False

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.name or Path(self.data).name.partition(".")[0]


def learn(
    data: str | Path,
    into: str | Path,
    *,
    model: str | Path | None = None,
    name: str = "",
    holdout: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    settings: Sequence[str] = (),
    template: str | None = None,
    start: Start = "fresh",
    check: Checks = "all",
    promise: float | None = None,
    discard: bool = False,
    backend: str = "torch-cpu",
    threads: int | None = None,
    answers: int = 3,
    quiet: bool = False,
) -> Assistant:
    """Teach the assistant in the folder ``into`` one more task. An interrupted phase goes on where it was stopped, to
    the same bits, when the same call is repeated with the same number of threads.

    Args:
        data: a file (.jsonl, .json, .csv, .tsv, .parquet, also .gz), a folder of `datasets`, or OWNER/NAME on the Hub.
        into: the assistant's folder, which the first task makes. model: the base model's folder, or "smollm2"; for a
            later task the one that the folder was made with.
        name: of the task; by default that of the file. holdout: a file for what is reported; by default a share of the
            documents of ``data``. columns: {"prompt": FIELD, ...} for data of no known shape, {"document": FIELD} for
            what must not be parted. split: of a dataset with several.
        settings: FIELD=VALUE of a protocol, as in `crma finetune --set`; what is not given follows the amount of data.
        template: the chat template: "auto", the model's own, "none", or a file; fixed by the first task.
        start: where the task's LoRA starts: "fresh", from the "last" task's, or from the "nearest" (that of the task
            which gives the new texts the lowest loss).
        check: which earlier tasks are measured after the phase, and may move to the new shared CRMA: "all", the
            "recent" 8, or "none". A task that is not measured goes on answering exactly as before.
        promise: percent: where a task would lose more on its reported texts than that, since its own phase, the phase
            is undone.
        discard: give up an interrupted phase of the folder.
        backend: "torch-cpu", "torch-cuda", "jax-cpu" or "jax-cuda"; may be another for each task. threads: of the CPU.
        answers: how many questions of the task are asked before and after. quiet: whether to print nothing.

    Returns: what the folder holds now.

    Raises: PromiseBrokenError, with the folder as before; CRMAError, naming what is wrong and what to try.
    Clauses: CL-11, CL-12, ERR-1. Source: the tasks in sequence, paper section 6.1; the rest, ours.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    lesson = Lesson(
        str(data), name, None if holdout is None else str(holdout), columns, split, settings, template, start, check,
        promise, discard,
    )  # fmt: skip
    _check_lesson(lesson, answers)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BackendError(
            "torchrun",
            got=f"{os.environ['WORLD_SIZE']} processes",
            allowed="one process",
            remedy="start `crma learn` without torchrun",
        )
    read = read_examples(lesson.data, lesson.columns, lesson.split)
    held_out = [] if lesson.holdout is None else [each.example for each in read_examples(lesson.holdout, columns)]
    folder = AssistantFolder(into)
    used = set_up_framework(backend, threads)
    make_engine, _ = engine_factory(backend)
    load_backend(backend)  # a missing device is one clear error, before anything is loaded
    console = Terminal(quiet=quiet)
    with folder.locked():
        if lesson.discard and folder.exists:
            folder.underway.unlink(missing_ok=True)
            folder.tidy()
        assistant = folder.read() if folder.exists else None
        _check_name(lesson.task, assistant)
        path = _model(assistant, model)
        phase = len(assistant.learned) if assistant else 0
        earlier = _texts(folder, assistant)
        splits = split_examples(read, held_out, earlier)
        protocol = _protocol(lesson, splits, path, assistant)
        condition = replace(KNOWN["modular-ratchet"], start=lesson.start)
        check_supported(protocol, [condition], backend, shard=False, random_weights="full" if is_random(path) else None)
        check_fits(path, protocol)
        task = Task(lesson.task, splits.train, splits.reported, decision=splits.decision)
        job = Job(path, protocol, condition, 0, [task])
        taught = EncodedTasks(job)
        if assistant is None:
            shared = protocol.model_copy(update={"tasks": ["task"], "description": ""})
            folder.claim(
                {
                    "model": path.name,
                    "found_at": _found_at(model, path),
                    "fingerprint": model_fingerprint(path),
                    "random_weights": is_random(path),
                    "settings": shared.model_dump(mode="json"),
                }
            )
            assistant = folder.read()
        _begin(folder, lesson, phase, splits, protocol, backend)
        if said := said_of({task.name: taught.texts[0]}):
            console.print(said, soft_wrap=True, highlight=False)
        if splits.left_out:
            console.print(
                f"Left out of the training: {splits.left_out} texts that a task is measured by.", highlight=False
            )
        engine = make_engine(job)
        if assistant.learned:
            engine.continue_from(folder.crma(0), folder.crma(phase - 1))
        with Progress(console, [1.0]) as progress:
            record = _Phase(engine, folder, assistant, taught, lesson, phase, progress).run()
        run = run_record(protocol, backend, path, used)
        record |= {
            "kind": "learned",
            "data": _described(lesson, splits),
            "backend": backend,
            "machine": run["machine"],
            "packages": run["versions"],
            "config": run["config"],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append_record(folder.history, record)
        folder.underway.unlink(missing_ok=True)
        folder.checkpoint.unlink(missing_ok=True)
        folder.tidy()
        del engine, taught
        gc.collect()
        if answers:
            device = "cuda" if backend == "torch-cuda" else "cpu"
            sample_answers(folder, lesson.task, answers, device, path)
        show_status(folder, console, told_of=lesson.task)
        return folder.read()


class _Phase:
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
        training = PhaseTraining(self.engine, self.taught, self.progress, NO_LOG, name)
        record = training.run(self.phase, folder.checkpoint, self._begin, index=0)
        self.engine.save_checkpoint(folder.checkpoint, record)
        self.engine.save_phase(self.phase, files)
        record["files"] = folder.digests(self.phase)
        self.engine.answer_with(self.phase, files)
        record["own"] = measured(self.engine, self.taught.holdout[0], name).model_dump()
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
            bare = measured(self.engine, self.taught.holdout[0], f"the bare model on {self.lesson.task}")
        return new_record(self.engine) | {
            "phase": self.phase,
            "task": self.lesson.task,
            "bare": bare.model_dump(),
            "start": self._start(),
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
            for name, task in tasks.items():
                self.engine.start_from(self.folder.files(task.record.phase))
                losses[name] = self.engine.holdout_loss(sample)
            chosen = min(losses, key=lambda name: losses[name])
        self.engine.start_from(self.folder.files(tasks[chosen].record.phase))
        return chosen

    def _turn_ratchet(self) -> tuple[dict[str, Check], dict[str, int]]:
        """Measure the earlier tasks, and the version that each answers with from now on. Clause: CL-11."""
        checks: dict[str, Check] = {}
        versions = {name: task.version for name, task in self.assistant.tasks.items()}
        chosen = _checked(self.assistant, self.lesson.check)
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
        answering = self.engine.holdout_loss(decision)
        self.engine.answer_with(self.phase, self.folder.files(task.record.phase, self.phase))
        shared = self.engine.holdout_loss(decision)
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
                "crma.displacement_budget",
            )


def _check_lesson(lesson: Lesson, answers: int) -> None:
    for option, value, allowed in (
        ("start", lesson.start, ("fresh", "last", "nearest")),
        ("check", lesson.check, ("all", "recent", "none")),
    ):
        if value not in allowed:
            raise ConfigError(f"--{option}", got=repr(value), allowed=", ".join(allowed), remedy="choose one of these")
    if not isinstance(answers, int) or not 0 <= answers <= 100:
        raise ConfigError("--answers", got=repr(answers), allowed="a number from 0 to 100", remedy="use 3")
    promise = lesson.promise
    if promise is not None and not 0 <= promise < float("inf"):
        raise ConfigError("--promise", got=promise, allowed="a number of percent >= 0", remedy="for example 1")
    if promise is not None and lesson.check == "none":
        raise ConfigError(
            "--promise",
            got=f"{promise:g} with --check none, which measures no earlier task",
            allowed="a promise that is measured",
            remedy="leave --check out; or leave --promise out: a task that is not measured answers exactly as before",
        )
    if not lesson.task.strip() or len(lesson.task) > 200 or "\0" in lesson.task:
        raise TaskDataError(
            "--name",
            got=repr(lesson.task)[:80],
            allowed="a name of 1 to 200 characters",
            remedy="give one with --name",
        )


def _check_name(name: str, assistant: Assistant | None) -> None:
    if assistant is not None and name in assistant.tasks:
        raise TaskDataError(
            "--name",
            got=f"{name!r}, which the folder has learned already",
            allowed=f"another name than {', '.join(assistant.tasks)}"[:300],
            remedy="give another one with --name; or forget the old task first: crma forget FOLDER --task NAME",
        )


def _model(assistant: Assistant | None, given: str | Path | None) -> Path:
    """The folder of the base model, which is that of the assistant. Raises: ModelError."""
    if assistant is None:
        if given is None:
            raise ModelError(
                "--model",
                got="none, for a folder that has learned nothing yet",
                allowed='a local Hugging Face folder, or "smollm2"',
                remedy="name the model that the assistant is to be built on; later tasks need no --model",
            )
        return resolve_model(str(given)).resolve()
    try:
        path = resolve_model(str(given or assistant.found_at)).resolve()
    except ModelError as error:
        if given is not None:
            raise
        raise ModelError(
            "model of the folder",
            got=f"nothing at {assistant.found_at}, where {assistant.model} lay",
            allowed="the base model that the folder was begun with",
            remedy="name its folder on this machine with --model",
        ) from error
    check_fingerprint(assistant.fingerprint, assistant.model, path)
    return path


def _found_at(given: str | Path | None, path: Path) -> str:
    """By which name a later command finds the model again."""
    return str(given) if given is not None and not Path(str(given)).exists() else str(path)


def _texts(folder: AssistantFolder, assistant: Assistant | None) -> dict[str, Texts]:
    return {
        name: read_texts(folder.texts(t.record.phase)) for name, t in (assistant.tasks if assistant else {}).items()
    }


def _checked(assistant: Assistant, check: Checks) -> dict[str, Taught]:
    names = list(assistant.tasks)
    chosen = {"all": names, "recent": names[-RECENT:], "none": []}[check]
    return {name: assistant.tasks[name] for name in chosen}


def _protocol(lesson: Lesson, splits: Splits, path: Path, assistant: Assistant | None) -> Protocol:
    """The task's protocol, in which the lengths of its texts are known. Raises: TaskDataError, ProtocolError."""
    settings = [*lesson.settings, *([f"template={lesson.template}"] if lesson.template is not None else [])]
    fixed = assistant.protocol if assistant else None
    roomy = task_protocol(lesson.task, len(splits.train), [], settings, fixed)
    config = load_config(path)
    positions = limits_of(config).positions or 2**24
    encoder = Encoder(load_tokenizer(path), roomy.model_copy(update={"max_tokens": 2**24}))
    encoded = encoder.encode([*splits.train, *splits.decision, *splits.reported], lesson.task)
    lengths = [min(len(example.ids), positions) for example in encoded]
    return task_protocol(lesson.task, len(splits.train), lengths, settings, fixed)


def _begin(
    folder: AssistantFolder, lesson: Lesson, phase: int, splits: Splits, protocol: Protocol, backend: str
) -> None:
    """Say what is under way; or go on with what was, where it is the same. Raises: RunFolderError."""
    wanted = {
        "phase": phase,
        "task": lesson.task,
        "data": digest_of_json([[digest_of(example) for example in side] for side in splits[:3]]),
        "settings": protocol.model_dump(mode="json", exclude={"checkpoint_every"}),
        "start": lesson.start,
        "backend": backend,
    }
    if folder.underway.exists():
        try:
            found: Any = read_json(folder.underway)
            differing = [field for field in wanted if found[field] != wanted[field]]
        except (OSError, ValueError, KeyError, TypeError):
            found, differing = {}, ["content"]
        if differing:
            raise RunFolderError(
                str(folder.path),
                got=f"an interrupted phase of the task {found.get('task')!r}, with other {', '.join(differing)}",
                allowed="the same command as the one that was interrupted",
                remedy="repeat it to go on; or give its work up with --discard",
            )
    else:
        atomic_write(folder.texts(phase), texts_file(splits))
        folder.checkpoint.unlink(missing_ok=True)
        atomic_write(folder.underway, json.dumps(wanted, indent=2).encode())


def _described(lesson: Lesson, splits: Splits) -> dict[str, str]:
    """What was taught, without saying where it lay."""
    described = {
        "name": Path(lesson.data).name,
        "sha256": digest_of_json([digest_of(example) for example in splits.train]),
    }
    return described | ({"holdout": Path(lesson.holdout).name} if lesson.holdout else {})
