"""``crma route``: fit the router of a run on its training prompts, store it, and say how well it tells tasks apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from backends.finetune.cli.generate import ROUTER_NAME
from backends.finetune.cli.options import TASK_FORM, RunFolder, SeedOfRun, option

if TYPE_CHECKING:
    from rich.table import Table

    from backends.finetune.inference.router_evaluation import Evaluation


def route(
    folder: RunFolder,
    evaluate: Annotated[
        bool,
        option(
            "--evaluate",
            help="also route the holdout prompts: confusion matrix, margins, and each task left out in turn",
        ),
    ] = False,
    embedding: Annotated[str, option(metavar="NAME", help="wordllama (default) or minilm")] = "wordllama",
    reject: Annotated[
        float,
        option(
            metavar="FRACTION",
            help="of the training prompts that the out-of-domain threshold would turn away (default: 0.01)",
        ),
    ] = 0.01,
    seed: SeedOfRun = None,
    task: Annotated[
        list[str] | None,
        option(metavar=TASK_FORM, help="a task of your own that the run was trained on; once per such task"),
    ] = None,
) -> None:
    """Run the command. Raises: the errors of everything it calls."""
    from backends.finetune.inference.embeddings import load_embedding
    from backends.finetune.inference.router import CentroidRouter
    from backends.finetune.inference.router_evaluation import evaluate as evaluation_of
    from backends.finetune.inference.router_evaluation import leave_out
    from backends.finetune.inference.run_queries import queries_of, run_tasks
    from backends.finetune.report.terminal import Terminal

    console = Terminal()
    tasks = run_tasks(folder, seed=seed, own=task or [])
    embed = load_embedding(embedding)
    queries = {task.name: queries_of(task.train) for task in tasks}
    router = CentroidRouter.fit(queries, embed, reject=reject)
    file = folder / ROUTER_NAME
    router.save(file)
    count = sum(len(texts) for texts in queries.values())
    console.print(
        f"router: {file}: {len(queries)} tasks, {count} training prompts, {embed.name}, "
        f"out of domain below {router.threshold:.3f}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if not evaluate:
        return
    asked = {task.name: queries_of(task.holdout) for task in tasks}
    found = evaluation_of(router, asked)
    console.print(confusion_table(found))
    low, _, median, _, _ = found.margins
    lines = [
        f"accuracy {found.accuracy:.4f}; without the threshold {found.nearest_accuracy:.4f}; "
        f"margin {median:.3f} in the median, {low:.3f} at worst"
    ]
    if len(tasks) > 1:
        lines += [
            f"{left.task} left out of the fit: {left.detected:.1%} of its prompts are called out of domain, "
            f"and {left.rejected_in_domain:.1%} of the other tasks'"
            for left in leave_out(queries, asked, embed, reject=reject)
        ]
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def confusion_table(found: Evaluation) -> Table:
    """Rows: the true task; columns: the routed one."""
    from rich.table import Table

    table = Table(title="holdout prompts: true task (row), routed task (column)")
    table.add_column("")
    for name in (*found.tasks, "out of domain"):
        table.add_column(name, justify="right")
    for name, row in zip(found.tasks, found.confusion.tolist(), strict=True):
        table.add_row(name, *(str(count) if count else "·" for count in row))
    return table
