"""Progress of a session on the terminal: what is being done, tokens per second, time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

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

    Args:
        weights: of each seed and condition, the cost of a token relative to the others; the bar and the time left
            count tokens times weight.

    Without a terminal, one line is printed per seed and condition instead.
    """

    def __init__(self, console: Console, weights: Sequence[float]) -> None:
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
        self._console, self._weights = console, weights
        self._finished: list[float | None] = []  # tokens of each; None where it was finished by an earlier start
        self._work, self._done, self._trained, self._training_seconds = 0.0, 0.0, 0, 0.0
        self._last = time.monotonic()
        self._task = self._bar.add_task("loading the model", total=None, branch="crma", rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def start_branch(self, name: str, work: float) -> None:
        """A seed and condition begins, with ``work`` tokens. Those still to come are taken to have as many."""
        place = len(self._finished)
        if not self._console.is_terminal:
            self._console.print(f"{name} ({place + 1} of {len(self._weights)})", markup=False)
        self._work, self._done, self._last = work, 0.0, time.monotonic()
        total = self._before() + work * sum(self._weights[place:])
        if None in self._finished or not self._finished:
            # Work of an earlier start took none of this start's time; reset keeps it out of the estimated speed.
            self._restart(total, branch=name, description="")
            self._finished = [self._work if tokens is None else tokens for tokens in self._finished]
        else:
            self._bar.update(self._task, total=total, completed=self._before(), branch=name, description="")

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=what)

    def skip(self, work: float) -> None:
        """Count ``work`` tokens that an earlier start has done."""
        self._done, self._last = self._done + work, time.monotonic()
        self._restart(self._bar.tasks[0].total, description=None)

    def advance(self, work: float, trained: int = 0, loss: float | None = None) -> None:
        """Count ``work`` tokens, of which ``trained`` were trained on since the last call, with this ``loss``."""
        now = time.monotonic()
        if trained:
            self._trained, self._training_seconds = self._trained + trained, self._training_seconds + now - self._last
        self._last, self._done = now, self._done + work
        rate = f"{self._trained / self._training_seconds:.0f} tok/s" if self._training_seconds > 0 else ""
        shown = rate if loss is None else f"loss {loss:.3f} {rate}"
        self._bar.update(self._task, completed=self._completed(), rate=shown)

    def finish_branch(self) -> None:
        """A seed and condition is done; without a ``start_branch`` before it, an earlier start did it."""
        self._finished.append(self._work if self._done else None)
        self._done = 0.0
        self._bar.update(self._task, completed=self._before())

    def _restart(self, total: float | None, description: str | None, **fields: str) -> None:
        kept: dict[str, Any] = self._bar.tasks[0].fields | fields  # reset forgets those that it is not given
        completed: Any = self._completed()
        self._bar.reset(self._task, total=total, completed=completed, description=description, **kept)

    def _before(self) -> float:
        """Tokens times weight of the finished branches."""
        sizes = (self._work if tokens is None else tokens for tokens in self._finished)
        return sum(weight * size for weight, size in zip(self._weights, sizes, strict=False))

    def _completed(self) -> float:
        return self._before() + self._weights[min(len(self._finished), len(self._weights) - 1)] * self._done
