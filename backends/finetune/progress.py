"""Progress of a session on the terminal: what is being done, tokens per second, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress:
    """One bar over all seeds and conditions. Work is counted in tokens trained on; reading one costs a third.

    Without a terminal, one line is printed per seed and condition instead.
    """

    def __init__(self, console: Console, branches: int) -> None:
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.fields[branch]}: {task.description}", style="bold", markup=False),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=120,
        )
        self._console, self._branches = console, branches
        self._finished, self._done, self._branch_work, self._trained, self._training_seconds = 0, 0.0, 1.0, 0, 0.0
        self._last = time.monotonic()
        self._task = self._bar.add_task("loading the model", total=None, branch="crma", rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def start_branch(self, name: str, work: float) -> None:
        """A seed and condition begins. All have about the same ``work``, so the total follows from this one."""
        if not self._console.is_terminal:
            self._console.print(f"{name} ({self._finished + 1} of {self._branches})")
        self._branch_work, self._done, self._last = work, 0.0, time.monotonic()
        self._bar.update(
            self._task, branch=name, total=work * self._branches, completed=work * self._finished, description=""
        )

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=what)

    def advance(self, work: float, trained: int = 0) -> None:
        """Count ``work``, of which ``trained`` tokens were trained on since the last call."""
        now = time.monotonic()
        if trained:
            self._trained, self._training_seconds = self._trained + trained, self._training_seconds + now - self._last
        self._last, self._done = now, self._done + work
        rate = f"{self._trained / self._training_seconds:.0f} tok/s" if self._training_seconds > 0 else ""
        self._bar.update(self._task, completed=self._branch_work * self._finished + self._done, rate=rate)

    def finish_branch(self) -> None:
        """A seed and condition is done."""
        self._finished += 1
        self._bar.update(self._task, completed=self._branch_work * self._finished)
