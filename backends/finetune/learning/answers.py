"""Sample answers: what the bare base model and the task say to questions of its reported texts."""

from pathlib import Path

from backends.atomic import atomic_write
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.learning.data import read_texts
from backends.finetune.runs.assistant_folder import AssistantFolder
from backends.finetune.runs.assistant_records import AnswersRecord
from backends.finetune.tasks.chat import Message
from backends.finetune.tasks.task import Example

WORDS, TOKENS = 8, 48  # of a text that nothing asks for, what is asked with; of an answer, at most


def sample_answers(folder: AssistantFolder, task: str, count: int, device: str, model: Path) -> None:
    """Ask the first ``count`` questions of what is reported of a task, and write down the answers; and ask again what
    was asked of the earlier tasks that have moved to its CRMA. The folder is locked by the caller."""
    assistant = folder.read()
    phase = assistant.tasks[task].record.phase
    registry = AdapterRegistry.from_run(folder.path, device=device, model=model, resident=1)

    def answered(by: str | None, asked: list[str | list[Message]]) -> list[str]:
        return list(registry.generate(asked, task=by, max_new_tokens=TOKENS))

    asked = _asked(folder, phase, count)
    questions = [turns if isinstance(turns, str) else turns[-1].content for turns in asked]
    own = answered(task, asked)
    bare = answered(None, asked)
    _write(folder, phase, AnswersRecord(questions=questions, before=bare, after=own, now=own, version=phase))
    for name, said in assistant.answers.items():
        earlier = assistant.tasks[name]
        if name != task and earlier.version == phase:
            now = answered(name, _asked(folder, earlier.record.phase, len(said.questions)))
            _write(folder, earlier.record.phase, said.model_copy(update={"now": now, "version": phase}))


def _asked(folder: AssistantFolder, phase: int, count: int) -> list[str | list[Message]]:
    return [_question(example) for example in read_texts(folder.texts(phase)).reported[:count]]


def _write(folder: AssistantFolder, phase: int, said: AnswersRecord) -> None:
    atomic_write(folder.answers(phase), said.model_dump_json(indent=2).encode())


def _question(example: Example) -> str | list[Message]:
    turns = example.conversation[:-1]
    return list(turns) if turns else " ".join(example.query.split()[:WORDS])
