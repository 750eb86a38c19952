"""``crma report RUN``: table, pictures and page of a run folder."""

from __future__ import annotations

from backends.finetune.cli.options import Run


def report(run: Run) -> None:
    """Write table, pictures and HTML of a run folder again."""
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.training.finetune import show_report

    show_report(run, Terminal())
