"""What an assistant has learned, and what became of it: a table, and sample answers."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from backends.finetune.report.labels import RANDOM_WEIGHTS, label, percent
from backends.finetune.report.page import TEMPLATES, write_file
from backends.finetune.report.pictures.assistant import draw_assistant
from backends.finetune.report.terminal import Terminal
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder, Taught
from backends.finetune.runs.assistant_records import AnswersRecord
from reference.errors import ConfigError

HEADINGS = ("task", "texts", "bare", "own phase", "now", "change", "exact match", "CRMA")


def row_of(name: str, task: Taught, assistant: Assistant) -> tuple[str, ...]:
    """The cells of a task, by HEADINGS: losses in nats per answer token on its reported texts."""
    record, now = task.record, task.now
    exact = " → ".join(f"{100 * each.exact_match:.0f}%" for each in (record.bare, record.own, now))
    return (
        label(name, 30),
        str(record.texts["train"].texts),
        f"{record.bare.loss:.4f}",
        f"{record.own.loss:.4f}",
        f"{now.loss:.4f}",
        percent(100 * (now.loss / record.own.loss - 1)) + "%" if now.loss != record.own.loss else "0 exactly",
        exact,
        "own" if task.version == record.phase else f"of {label(assistant.learned[task.version].task, 20)}",
    )


def status_table(assistant: Assistant) -> Table:
    """One row a task."""
    table = Table(title=f"{assistant.folder.name}: {len(assistant.tasks)} tasks on {assistant.model}")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index in (0, 7) else "right", overflow="fold")
    for name, task in assistant.tasks.items():
        table.add_row(*row_of(name, task, assistant))
    return table


def show_status(folder: AssistantFolder, console: Terminal, *, told_of: str | None = None) -> None:
    """Print the table, the sample answers of one task, and what earlier ones that moved with it say otherwise."""
    assistant = folder.read()
    if assistant.random_weights:
        console.print(RANDOM_WEIGHTS)
    console.print(status_table(assistant))
    console.print(
        "Losses in nats per answer token on reported texts, by which nothing was chosen: of the bare model, after the "
        "task's own phase, and now. Exact match in the same order.",
        highlight=False,
    )
    if told_of is not None and told_of not in assistant.tasks:
        raise ConfigError(
            "--task", got=repr(told_of), allowed=", ".join(assistant.tasks) or "no task yet", remedy="name one of these"
        )
    if told_of is None:
        return
    phase = assistant.tasks[told_of].record.phase
    for name, answers in assistant.answers.items():
        if name == told_of:
            _show_answers(console, answers, "before", answers.before, range(len(answers.questions)))
        elif assistant.tasks[name].version == answers.version == phase:  # another one answers as before, to the bit
            pairs = enumerate(zip(answers.after, answers.now, strict=True))
            changed = [index for index, (after, now) in pairs if after != now]
            other = f"{len(changed)} of {len(answers.questions)} sample answers are others"
            console.print(Text(f"\n{label(name, 30)} has moved to the new CRMA: {other}."))
            _show_answers(console, answers, "own phase", answers.after, changed)


def _show_answers(
    console: Terminal, answers: AnswersRecord, when: str, earlier: Sequence[str], shown: Iterable[int]
) -> None:
    for index in shown:
        console.print(Text(f"\n{label(answers.questions[index], 200)}", style="bold"))
        for word, said in ((when, earlier[index]), ("now", answers.now[index])):
            console.print(f"  {word + ':':11}{_said(said)}", highlight=False)


def _said(answer: str) -> str:
    return label(answer, 300) if answer.strip() else "(empty: the model ended at once)"


def write_page(folder: AssistantFolder) -> Path:
    """Write ``status.html`` into the folder: the same with a picture, to be read on a phone as well."""
    assistant = folder.read()
    rows = [row_of(name, task, assistant) for name, task in assistant.tasks.items()]
    picture = base64.b64encode(draw_assistant(assistant)).decode()
    page = TEMPLATES.get_template("status.html").render(
        assistant=assistant,
        headings=HEADINGS,
        rows=rows,
        picture=f"data:image/png;base64,{picture}",
        random_weights=RANDOM_WEIGHTS if assistant.random_weights else "",
        answers=assistant.answers,
        said=_said,
    )
    write_file(folder.page, page.encode("utf-8", "xmlcharrefreplace"))
    return folder.page
