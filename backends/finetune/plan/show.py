"""The plan as tables."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.finetune.plan.estimate import ConditionPlan, Plan, Range
from backends.finetune.plan.work import orders
from backends.finetune.protocols.protocol import Protocol

GIB = 2**30
HEADROOM = 1.35  # what allocators may hold beyond what is in use, and short-lived buffers; see bench/plan_check.py


def show_plan(console: Console, plan: Plan, protocol: Protocol, notes: list[str], limit: float | None) -> None:
    """Print all of it. ``limit``: bytes of one device. ``notes``: what the figures rest on."""
    console.print(_parameters(plan, protocol))
    console.print(_phases(plan, protocol))
    console.print(_memory(plan, protocol, limit))
    console.print(_times(plan, protocol))
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    return table


def _parameters(plan: Plan, protocol: Protocol) -> Table:
    counts = plan.counts
    title = f"Parameters: base {counts.base:,} in {counts.layers} layers of width {counts.hidden_size}"
    table = _table(title, "condition", "LoRA of a task", "CRMA", "base", "trained at once", "of the base")
    for name, condition in plan.conditions.items():
        parts, total = condition.trainable, sum(condition.trainable.values())
        each = [f"{parts[part]:,}" if part in parts else "" for part in ("lora", "crma", "full")]
        table.add_row(name, *each, f"{total:,}", f"{100 * total / counts.base:.3g}%")
    if "frozen-raised" in plan.conditions:
        table.caption = f"frozen-raised: LoRA of rank {counts.raised_rank(protocol.lora.rank)}"
    return table


def _phases(plan: Plan, protocol: Protocol) -> Table:
    one = "one seed, condition and order" if orders(protocol) > 1 else "one seed and condition"
    title = f"Work of {one}: {protocol.epochs} epoch{'s' if protocol.epochs > 1 else ''} a task"
    columns = ("task", "steps an epoch", "steps", "tokens an epoch", "computed, with padding", "holdout tokens")
    table = _table(title, *columns)
    for phase in plan.work:
        numbers = (
            phase.steps(1, protocol.accumulation),
            phase.steps(protocol.epochs, protocol.accumulation),
            phase.tokens,
            phase.padded_tokens,
            phase.holdout_tokens,
        )
        table.add_row(phase.task, *(f"{number:,}" for number in numbers))
    return table


def _memory(plan: Plan, protocol: Protocol, limit: float | None) -> Table:
    rows, tokens, _ = plan.batch
    state = ("with", "without") if protocol.gradient_checkpointing else ("without", "with")
    title = f"Memory of one device in GiB, {state[0]} gradient checkpointing; largest batch {rows} x {tokens}"
    parts = list(next(iter(plan.conditions.values())).memory)
    table = _table(title, "part", *plan.conditions)
    for part in parts:
        table.add_row(part, *(f"{condition.memory[part] / GIB:.2f}" for condition in plan.conditions.values()))
    table.add_section()
    table.add_row("in all", *(f"{each.peak / GIB:.2f}" for each in plan.conditions.values()), style="bold")
    others = (f"{condition.other_memory / GIB:.2f}" for condition in plan.conditions.values())
    table.add_row(f"in all, {state[1]} it", *others)
    if limit is not None:
        table.add_row(f"fits {limit / GIB:.0f} GiB", *(_verdict(each, limit) for each in plan.conditions.values()))
    return table


def _verdict(condition: ConditionPlan, limit: float) -> Text:
    if condition.peak > limit:
        return Text("no", style="red")
    return Text("yes") if condition.peak * HEADROOM < limit else Text("barely", style="yellow")


def _times(plan: Plan, protocol: Protocol) -> Table:
    seeds, times = len(protocol.seeds), orders(protocol)
    runs, are_many = seeds * times, times > 1
    title = f"Time, and disk of the run folder{'s' if are_many else ''}, for all of {seeds} seed(s)"
    title += f" in each of {times} orders of the tasks" if are_many else ""
    columns = (
        "condition",
        "TFLOP, largest batch",
        "longest task's epoch",
        "one seed and order" if are_many else "one seed",
        "all seeds and orders" if are_many else "all seeds",
        "disk, MiB",
    )
    table = _table(title, *columns)
    for name, condition in plan.conditions.items():
        work = (condition.operations.forward + condition.operations.backward) / 1e12
        run = condition.run
        every = None if run is None else (runs * run[0], runs * run[1])
        spans = [_span(span) for span in (condition.epoch, run, every)]
        table.add_row(name, f"{work:.3g}", *spans, f"{runs * condition.disk / 2**20:.0f}")
    return table


def _span(span: Range | None) -> str:
    if span is None:
        return "?"
    low, high = (_clock(seconds) for seconds in span)
    return low if low == high else f"{low} to {high}"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
