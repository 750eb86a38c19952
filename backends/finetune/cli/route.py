"""``crma route``: fit the router of a run on its training prompts, store it, and say how well it tells tasks apart."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.finetune.cli.generate import ROUTER_NAME

if TYPE_CHECKING:
    from rich.table import Table

    from backends.finetune.inference.router_evaluation import Evaluation


def add_parser(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    parser = commands.add_parser("route", help="fit the router that `crma generate --route` uses")
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of `crma finetune`")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="also route the holdout prompts: confusion matrix, margins, and each task left out in turn",
    )
    parser.add_argument("--embedding", default="wordllama", metavar="NAME", help="wordllama (default) or minilm")
    parser.add_argument(
        "--reject",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="of the training prompts that the out-of-domain threshold would turn away (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="of the run (default: its first)")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME=TRAIN.jsonl:HOLDOUT.jsonl",
        help="a task of your own that the run was trained on; once per such task",
    )
    parser.set_defaults(run=route)


def route(options: argparse.Namespace) -> None:
    """Run the command. Raises: the errors of everything it calls."""
    from backends.finetune.inference.embeddings import load_embedding
    from backends.finetune.inference.router import CentroidRouter
    from backends.finetune.inference.router_evaluation import evaluate, leave_out
    from backends.finetune.inference.run_queries import queries_of, run_tasks
    from backends.finetune.report.terminal import Terminal

    console = Terminal()
    tasks = run_tasks(options.folder, seed=options.seed, own=options.task or [])
    embed = load_embedding(options.embedding)
    queries = {task.name: queries_of(task.train) for task in tasks}
    router = CentroidRouter.fit(queries, embed, reject=options.reject)
    file = options.folder / ROUTER_NAME
    router.save(file)
    count = sum(len(texts) for texts in queries.values())
    console.print(
        f"router: {file}: {len(queries)} tasks, {count} training prompts, {embed.name}, "
        f"out of domain below {router.threshold:.3f}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if not options.evaluate:
        return
    asked = {task.name: queries_of(task.holdout) for task in tasks}
    found = evaluate(router, asked)
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
            for left in leave_out(queries, asked, embed, reject=options.reject)
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
