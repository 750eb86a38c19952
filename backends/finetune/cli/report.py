"""``crma report RUN``: table, pictures and HTML page of a run folder, written again."""

from pathlib import Path


def report(folder: Path) -> None:
    """Raises: as :func:`backends.finetune.report.page.write_report`."""
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.training.finetune import show_report

    show_report(folder, Terminal())
