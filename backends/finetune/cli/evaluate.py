"""``crma evaluate FOLDER``: benchmarks of lm-evaluation-harness, of the bare model and with a task's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backends.finetune.cli.options import SeedOfRun, Threads, option
from reference.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from backends.finetune.runs.evaluation_record import Evaluation, Score

HARNESS = "lm-eval"


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="an assistant's folder, or a run's")],
    task: Annotated[str, option(metavar="NAME", help="the task whose adapters answer")],
    benchmarks: Annotated[
        str,
        option(
            "--with",
            metavar="lm-eval:NAME,...",
            help="tasks of lm-evaluation-harness, such as mmlu, and .yaml files of your own in its format",
        ),
    ],
    limit: Annotated[int | None, option(metavar="N", help="texts of each benchmark at most (default: all)")] = None,
    batch_size: Annotated[int, option(metavar="N", help="(default: 8)")] = 8,
    device: Annotated[Literal["cpu", "cuda"], option()] = "cpu",
    model: Annotated[str | None, option(metavar="FOLDER", help="where the base model lies, if it has moved")] = None,
    seed: SeedOfRun = None,
    condition: Annotated[str, option(help="of the run (default: modular)")] = "modular",
    threads: Threads = None,
    run_code: Annotated[
        bool, option("--run-code", help="run the Python code that .yaml files and metrics bring along")
    ] = False,
    out: Annotated[
        Path | None, option(metavar="FILE.json", help="(default: evaluation-NAME.json in FOLDER, a .png beside it)")
    ] = None,
) -> None:
    """Raises: as :func:`backends.finetune.learning.evaluation.evaluate`."""
    from backends.finetune.learning.evaluation import evaluate, file_of
    from backends.finetune.report.terminal import Terminal

    harness, colon, names = benchmarks.partition(":")
    if harness != HARNESS or not colon:
        raise ConfigError(
            "--with", got=repr(benchmarks), allowed=f"{HARNESS}:NAME,...", remedy=f"for example {HARNESS}:mmlu,gsm8k"
        )
    evaluation = evaluate(
        folder,
        task,
        [name.strip() for name in names.split(",") if name.strip()],
        limit=limit,
        batch_size=batch_size,
        device=device,
        model=model,
        seed=seed,
        condition=condition,
        threads=threads,
        run_code=run_code,
        out=out,
    )
    console = Terminal()
    console.print(evaluation_table(evaluation))
    file = file_of(folder, task, out)
    console.print(f"table: {file}\npicture: {file.with_suffix('.png')}", soft_wrap=True, highlight=False)


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row for each metric: value ± standard error, by what answered."""
    from rich.table import Table

    from backends.finetune.report.labels import RANDOM_WEIGHTS, label

    rows = evaluation.shown
    answering = list(rows[0].scores) if rows else []
    caption = RANDOM_WEIGHTS if evaluation.random_weights else ""
    table = Table(title=f"{label(evaluation.task, 40)} on {label(evaluation.model, 40)}", caption=caption)
    for index, name in enumerate(("benchmark", "metric", "texts", *answering)):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for row in rows:
        metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        samples = "" if row.samples is None else str(row.samples)
        table.add_row(row.benchmark, metric, samples, *(_shown(row.scores[name]) for name in answering))
    return table


def _shown(score: Score) -> str:
    if score.value is None:
        return "none"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
