"""A certification on the terminal: one line per promise, the worst seed of each, and what is not promised."""

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from rich.text import Text

import reference
from backends.finetune.certify.certification import Certification
from backends.finetune.certify.check import Check
from backends.finetune.certify.promises import CANNOT_KNOW, NOT_CHECKED
from backends.finetune.report.labels import RANDOM_WEIGHTS, label, readable, title_of

_STYLES = {"pass": "green", "fail": "bold red", "not promised": "dim"}


def show(certification: Certification, console: Console) -> None:
    """Print the table, each failure with its reason, what was not checked, the verdict, and what no check can know."""
    console.print(certification_table(certification))
    for check in certification.checks:
        if check.verdict == "fail":
            console.print(
                Text(f"FAIL {_whose(check)}: {check.name}: {_reason(check)}", style="bold red"), soft_wrap=True
            )
    console.print("Not checked:", style="bold")
    for sentence in NOT_CHECKED:
        console.print(Text(f"  - {sentence}", style="dim"))
    passes, fails, open_ = (
        sum(check.verdict == verdict for check in certification.checks) for verdict in ("pass", "fail", "not promised")
    )
    counts = f"{passes} passed, {fails} failed, {open_} not promised"
    verdict = "PASS" if certification.passed else "FAIL"
    run = certification.results.run if certification.results else None
    weights = f"; {RANDOM_WEIGHTS}" if run and run.random_weights else ""
    line = (
        f"{verdict}: {counts}; {len(certification.digests)} files read; specification {reference.SPEC_VERSION}{weights}"
    )
    console.print(Text(line, style="bold green" if certification.passed else "bold red"))
    console.print(Text(" ".join(CANNOT_KNOW)))


def certification_table(certification: Certification) -> Table:
    """One row per condition and promise: worst value over the seeds, its bound and margin, and the verdict."""
    run = certification.results.run if certification.results else None
    title = None
    if run is not None:
        title = Text(title_of(run) + (", random weights" if run.random_weights else ""))
    table = Table(title=title, title_justify="left", box=HORIZONTALS, pad_edge=False)
    table.add_column("promise", overflow="fold", ratio=1)
    for heading in ("worst", "bound", "margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in certification.checks:
        groups.setdefault((check.condition, check.name), []).append(check)
    previous = None
    for (condition, name), checks in groups.items():
        if condition != previous:
            if previous is not None:
                table.add_section()
            seeds = len({check.seed for check in certification.checks if check.condition == condition})
            text = "the run" if condition == "run" else f"{label(readable(condition), 40)}, seeds: {seeds}"
            table.add_row(Text(text, style="bold"))
            previous = condition
        worst = min(checks, key=_severity)
        margin = "" if worst.margin is None else f"{worst.margin:.1e}"
        verdict = worst.verdict if worst.verdict != "fail" else "FAIL"
        cells = map(Text, (f"  {name}", _number(worst.value), _number(worst.bound), margin))
        table.add_row(*cells, Text(verdict, style=_STYLES[worst.verdict]))
    return table


def _severity(check: Check) -> tuple[int, float]:
    """Failures first, then the smallest margin, then the largest value."""
    order = {"fail": 0, "not promised": 1, "pass": 2}[check.verdict]
    margin = check.margin if check.margin is not None else -abs(check.value or 0.0)
    return order, margin if margin == margin else float("-inf")


def _whose(check: Check) -> str:
    return "the run" if check.seed is None else f"{label(readable(check.condition), 40)}, seed {check.seed}"


def _reason(check: Check) -> str:
    found = "" if check.value is None else f"{_number(check.value)} in {check.where}, bound {_number(check.bound)}: "
    return found + check.reason


def _number(value: float | None) -> str:
    """Numbers around 1 by their distance from it."""
    if value is None:
        return ""
    if value == int(value) if abs(value) < 1e6 else False:
        return str(int(value))
    if abs(value - 1) < 1e-4:
        return f"1 {'+' if value > 1 else '−'} {abs(value - 1):.1e}"
    return f"{value:.4g}"
