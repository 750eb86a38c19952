"""The progress bar: how much is done when branches cost differently or were done by an earlier start."""

import io
import time

import pytest
from rich.console import Console

from backends.finetune.training.progress import Progress


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def fraction(progress):
    """How much is done, 0 to 1; None before the first branch has said how much it is."""
    task = progress._bar.tasks[0]
    return task.total and task.completed / task.total


def test_an_expensive_branch_takes_its_share_of_the_bar():
    progress = Progress(console(), (1, 1, 2))
    assert fraction(progress) is None
    for done, name in enumerate(("naive", "modular")):
        progress.start_branch(name, 100)
        progress.advance(50, trained=50)
        assert fraction(progress) == pytest.approx((done + 0.5) / 4)
        progress.advance(50)
        progress.finish_branch()
    progress.start_branch("full", 100)
    assert fraction(progress) == pytest.approx(2 / 4)
    progress.advance(100)
    progress.finish_branch()
    assert fraction(progress) == pytest.approx(1)


def test_a_branch_of_another_size_changes_the_total():
    progress = Progress(console(), (1, 1))
    progress.start_branch("naive", 100)
    progress.advance(100)
    progress.finish_branch()
    progress.start_branch("replay", 300)
    assert fraction(progress) == pytest.approx(100 / 400)


def test_what_an_earlier_start_did_counts_as_done_but_not_as_speed(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(console(), (3, 1, 1, 1))
    progress._bar.get_time = lambda: clock[0]
    progress.finish_branch()
    progress.start_branch("frozen", 100)
    assert fraction(progress) == pytest.approx(300 / 600)
    progress.skip(60)
    assert fraction(progress) == pytest.approx(360 / 600)
    for _ in range(4):
        clock[0] += 1
        progress.advance(10, trained=10)
    task = progress._bar.tasks[0]
    assert task.speed == pytest.approx(10)
    assert task.time_remaining == pytest.approx(20)
    assert task.fields["rate"] == "10 tok/s"


def test_without_a_terminal_one_line_per_branch():
    output = console()
    progress = Progress(output, (1, 1))
    progress.finish_branch()
    progress.start_branch("seed 0 [red]naive", 10)
    assert output.file.getvalue() == "seed 0 [red]naive (2 of 2)\n"


def test_on_a_terminal_the_bar_names_the_branch():
    output = console(terminal=True)
    with Progress(output, [1]) as progress:
        progress.start_branch("seed 7 frozen", 10)
        progress.describe("Medical")
        progress.advance(10, trained=10)
        progress.finish_branch()
    assert "seed 7 frozen: Medical" in output.file.getvalue()
    assert "100%" in output.file.getvalue()
