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
    """Ask the first ``count`` questions of what is reported of a task, and write down the answers. The folder is locked
    by the caller."""
    phase = folder.read().tasks[task].record.phase
    texts = read_texts(folder.texts(phase))
    asked = [_question(example) for example in texts.reported[:count]]
    registry = AdapterRegistry.from_run(folder.path, device=device, model=model, resident=1)
    before, after = (registry.generate(asked, task=name, max_new_tokens=TOKENS) for name in (None, task))
    questions = [turns if isinstance(turns, str) else turns[-1].content for turns in asked]
    said = AnswersRecord(questions=questions, before=before, after=after)
    atomic_write(folder.answers(phase), said.model_dump_json(indent=2).encode())


def _question(example: Example) -> str | list[Message]:
    turns = example.conversation[:-1]
    return list(turns) if turns else " ".join(example.query.split()[:WORDS])
