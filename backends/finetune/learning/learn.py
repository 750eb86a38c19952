"""Teach an assistant one more task: train, let the ratchet turn, keep the promise, write it down."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backends import load_backend
from backends.atomic import atomic_write
from backends.files import read_json
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.world import world_size
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
from backends.finetune.learning.lesson import Checks, Lesson, Start, check_lesson
from backends.finetune.learning.phase import LessonPhase
from backends.finetune.learning.settings import task_protocol
from backends.finetune.learning.status import show_status
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.fingerprint import check_fingerprint, model_fingerprint
from backends.finetune.models.folder import load_config, load_tokenizer
from backends.finetune.models.limits import limits_of
from backends.finetune.models.marker import is_random
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.protocols.supported import check_supported
from backends.finetune.report.terminal import Terminal
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder
from backends.finetune.runs.results import append_record
from backends.finetune.runs.run_folder import differences
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import Task, fingerprint
from backends.finetune.tasks.texts import said_of
from backends.finetune.training.encoded_tasks import EncodedTasks
from backends.finetune.training.precision import on_this_processor
from backends.finetune.training.progress import Progress
from backends.finetune.training.run_identity import digest_of as digest_of_json
from backends.finetune.training.run_identity import run_record
from backends.finetune.training.threads import set_up_framework
from reference.errors import BackendError, ConfigError, CRMAError, ModelError, RunFolderError, TaskDataError


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
        start: where the task's LoRA starts: "fresh", from the "last" task's, from the "nearest" (that of the task
            which gives the new texts the lowest loss), or "distilled": from the last task's, and held near its answers
            on the new texts (`distilled.strength`).
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
    for field, value in (("data", data), ("into", into)):
        if not isinstance(value, (str, os.PathLike)):
            raise ConfigError(
                field,
                got=f"a {type(value).__name__}",
                allowed="a path, or the name of a dataset",
                remedy="write the rows into a .jsonl file, one object a line" if field == "data" else "name a folder",
            )
    lesson = Lesson(
        str(data), name, None if holdout is None else str(holdout), columns, split, settings, template, start, check,
        promise, discard,
    )  # fmt: skip
    check_lesson(lesson, answers)
    if world_size() > 1:
        raise BackendError(
            "torchrun",
            got=f"{world_size()} processes",
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
            folder.drop_phase(len(folder.read().learned))
            folder.tidy()
        assistant = folder.read() if folder.exists else None
        _check_name(lesson.task, assistant)
        path = _model(assistant, model)
        phase = len(assistant.learned) if assistant else 0
        if assistant is not None:
            measured_now = lesson.checked(assistant).values()
            needed = {0, phase - 1, *(n for task in measured_now for n in (task.record.phase, task.version))}
            folder.check_files(assistant, needed if lesson.start == "fresh" else None)
        earlier = _texts(folder, assistant)
        splits = split_examples(read, held_out, earlier)
        protocol = _protocol(lesson, splits, path, assistant)
        chosen = settings if assistant is None else [f"precision={assistant.protocol.precision}"]
        protocol, slow = on_this_processor(protocol, backend, chosen)
        condition = lesson.condition(protocol, assistant)
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
        _begin(folder, lesson, phase, task, splits, protocol, backend)
        for said in (slow, said_of({task.name: taught.texts[0]})):
            if said:
                console.print(said, soft_wrap=True, highlight=False)
        if splits.left_out:
            console.print(
                f"Left out of the training: {splits.left_out} texts that a task is measured by.", highlight=False
            )
        engine = make_engine(job)
        if assistant.learned:
            engine.continue_from(folder.files(0), folder.files(phase - 1))
        with Progress(console, [1.0]) as progress:
            record = LessonPhase(engine, folder, assistant, taught, lesson, phase, progress).run()
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
            try:
                sample_answers(folder, lesson.task, answers, device, path)
            except CRMAError as error:  # a question that cannot be asked does not undo what was learned
                console.print(f"No sample answers: {error}", soft_wrap=True, highlight=False)
        show_status(folder, console, told_of=lesson.task)
        return folder.read()


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


def _protocol(lesson: Lesson, splits: Splits, path: Path, assistant: Assistant | None) -> Protocol:
    """The task's protocol, in which the lengths of its texts are known. Raises: TaskDataError, ProtocolError."""
    settings = [*lesson.settings, *([f"template={lesson.template}"] if lesson.template is not None else [])]
    fixed = assistant.protocol if assistant else None
    given, distilled = (lesson.task, len(splits.train)), lesson.start == "distilled"
    roomy = task_protocol(*given, [], settings, fixed, distilled=distilled)
    positions = limits_of(load_config(path)).positions or 2**24
    encoder = Encoder(load_tokenizer(path), roomy.model_copy(update={"max_tokens": 2**24}))
    encoded = encoder.encode([*splits.train, *splits.decision, *splits.reported], lesson.task)
    lengths = [len(example.ids) for example in encoded]
    return task_protocol(*given, lengths, settings, fixed, positions, distilled=distilled)


def _begin(
    folder: AssistantFolder, lesson: Lesson, phase: int, task: Task, splits: Splits, protocol: Protocol, backend: str
) -> None:
    """Say what is under way; or go on with what was, where it is the same. Raises: RunFolderError."""
    wanted = {
        "phase": phase,
        "task": lesson.task,
        "data": fingerprint(task),
        "settings": protocol.model_dump(mode="json", exclude={"checkpoint_every"}),
        "start": lesson.start,
        "backend": backend,
    }
    if folder.underway.exists():
        try:
            found: Any = read_json(folder.underway)
            differing = [field for field in wanted if any(differences(found[field], wanted[field]))]
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
        atomic_write(folder.underway, json.dumps(wanted, indent=2).encode())
    atomic_write(folder.texts(phase), texts_file(splits))


def _described(lesson: Lesson, splits: Splits) -> dict[str, str]:
    """What was taught, without saying where it lay."""
    described = {
        "name": Path(lesson.data).name,
        "sha256": digest_of_json([digest_of(example) for example in splits.train]),
    }
    return described | ({"holdout": Path(lesson.holdout).name} if lesson.holdout else {})
