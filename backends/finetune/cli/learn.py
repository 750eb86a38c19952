"""``crma learn``: teach an assistant one more task."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from backends.files import printable
from backends.finetune.cli.options import Backend, Settings, Threads, option
from reference.errors import ConfigError, PromiseBrokenError

PROMISE_BROKEN = 3


def learn(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=".jsonl, .json, .csv, .tsv or .parquet, also with .gz; a folder of `datasets`; OWNER/NAME on the"
            " Hugging Face Hub; or a .toml file with a list of tasks",
        ),
    ],
    into: Annotated[Path, option(metavar="FOLDER", help="the assistant's folder; the first task makes it")],
    model: Annotated[
        str | None,
        option(help="of the first task: a local Hugging Face folder, or smollm2; later only where it has moved"),
    ] = None,
    name: Annotated[str, option(help="of the task (default: the file's)")] = "",
    holdout: Annotated[
        str | None, option(metavar="DATA", help="what is reported (default: a share of the documents of DATA)")
    ] = None,
    columns: Annotated[
        list[str] | None,
        option(
            metavar="FIELD=COLUMN...",
            help="for data of no known shape, such as prompt=question response=reply; document=COLUMN keeps the rows of"
            " a document together",
        ),
    ] = None,
    split: Annotated[str, option(help="of a dataset with several (default: train)")] = "train",
    settings: Settings = None,
    template: Annotated[
        str | None,
        option(metavar="auto|none|FILE", help="chat template, of the first task (default: auto, the model's own)"),
    ] = None,
    start: Annotated[
        Literal["fresh", "last", "nearest", "distilled"],
        option(help="where the task's LoRA starts; distilled: from the last, held near its answers (default: fresh)"),
    ] = "fresh",
    check: Annotated[
        Literal["all", "recent", "none"],
        option(help="earlier tasks that are measured and may move to the new CRMA (default: all)"),
    ] = "all",
    promise: Annotated[
        float | None,
        option(metavar="PERCENT", help="undo the phase (exit code 3) where an earlier task would lose more than this"),
    ] = None,
    discard: Annotated[bool, option("--discard", help="give up an interrupted phase of the folder")] = False,
    backend: Backend = "torch-cpu",
    threads: Threads = None,
    answers: Annotated[int, option(metavar="N", help="questions that are asked before and after (default: 3)")] = 3,
) -> int:
    """Run the command; 3 where a promise would be broken. Raises: the errors of everything it calls."""
    from backends.finetune.learning.learn import learn
    from backends.finetune.learning.task_list import read_task_list, yet_to_learn

    common = {
        "model": model,
        "settings": settings or [],
        "template": template,
        "start": start,
        "check": check,
        "promise": promise,
        "discard": discard,
        "backend": backend,
        "threads": threads,
        "answers": answers,
    }
    own = {"name": name, "holdout": holdout, "columns": columns_of(columns or []), "split": split}
    lessons: list[dict[str, Any]] = [{"data": data, **own}]
    if data.endswith(".toml"):
        listed = read_task_list(Path(data), own)
        lessons = yet_to_learn(listed, into)
        if count := len(listed) - len(lessons):
            print(f"learned already: {count} of the {len(listed)} tasks of the list", file=sys.stderr)
    try:
        for lesson in lessons:
            learn(into=into, **(common | lesson))
    except PromiseBrokenError as error:
        print("crma: " + printable(error), file=sys.stderr)
        return PROMISE_BROKEN
    return 0


def columns_of(given: list[str]) -> dict[str, str] | None:
    """From FIELD=COLUMN to a dictionary. Raises: ConfigError."""
    columns: dict[str, str] = {}
    for pair in given:
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not (equals and field and column) or field in columns:
            raise ConfigError(
                "--columns",
                got=repr(pair),
                allowed="FIELD=COLUMN, each field once",
                remedy="for example --columns prompt=question response=reply",
            )
        columns[field] = column
    return columns or None
