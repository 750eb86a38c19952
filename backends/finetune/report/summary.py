"""The figures of a run as tables for the terminal, with what their columns mean."""

from collections.abc import Mapping, Sequence

from rich.box import HORIZONTALS
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

import reference
from backends.finetune.methods.conditions import PAPER
from backends.finetune.report.intervals import noise_floor
from backends.finetune.report.labels import RANDOM_WEIGHTS, label, readable, title_of
from backends.finetune.report.paper import paper_fictional, paper_rows
from backends.finetune.report.rows import FORMS, signed, spread, summary_rows, values_of
from backends.finetune.runs.results import RunResults
from backends.finetune.tasks.texts import said_of

GAP = 3  # between two columns of a table
NARROWEST = 16  # of the column that names a condition
COLUMNS = (
    "condition", "seeds", "drift, %", "holdout, nats", "advantage, %", "tasks 2 on, %", "transfer, nats",
    "exact match, change",
)  # fmt: skip
MEANINGS = (
    "± is the sample standard deviation over seeds, below it the range, or in brackets the 95% interval over held-out "
    "texts{over_seeds}. Holdout is the final loss per answer token, averaged over tasks; advantage is over FROZEN."
)
TRANSFER = (
    " Transfer is forward: how much earlier tasks changed a task's loss before its own phase (negative = helped)."
)
EXACT = (
    " Exact match: change of the fraction of a task's canaries that are recalled, since its own phase, averaged over "
    "all tasks but the last (positive = better)."
)
LATER = " Tasks 2 on: advantage over all tasks but the first, which nothing learned before can help."
NOISY = " ≈: no more than another draw of LoRA's start changes, which is up to {:.2f}%."
BESIDE = ' Rows marked "paper" are of another model and scale: compare directions, not sizes.'
NOT_ZERO = " FROZEN's drift is exactly 0 in a correct harness; the paper reports +1.95% for it."


def summary_table(results: RunResults, width: int = 100) -> Table:
    """The summary as a table for a terminal of ``width``. Forward transfer and the change of exact match have a column
    where the run has measured them and nothing has to be narrowed for it; the latter comes first.

    The paper's rows are dim and say so. Clauses: CL-2..CL-8.
    """
    run = results.run
    lines = []
    for row in summary_rows(results):
        first = f"paper: {row.source}" if row.source else label(readable(row.condition), 30)
        lines.append((row, (first, *row[1 : len(COLUMNS)])))
    shown = _columns_that_fit(results, [cells for _, cells in lines], width)
    caption = caption_of(results, transfer=len(COLUMNS) - 2 in shown, later=len(COLUMNS) - 3 in shown)
    if results.has_canaries and len(COLUMNS) - 1 not in shown:
        changes = [f"{cells[0]} {cells[-1]}" for row, cells in lines if not row.source]
        caption = f"Change of exact match: {', '.join(changes)}. {caption}"
    table = _table(title_of(run), caption, run.random_weights)
    for index in shown:
        if index == 0:
            table.add_column(COLUMNS[index], min_width=NARROWEST, overflow="fold")
        else:
            table.add_column(_heading(index), justify="right", no_wrap=True)
    previous = None
    for row, cells in lines:
        if previous is not None and row.condition != previous:
            table.add_section()
        style = "dim" if row.source else "bold" if row.condition in PAPER else ""
        table.add_row(*(Text(cells[index]) for index in shown), style=style)
        previous = row.condition
    return table


def _columns_that_fit(results: RunResults, lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """The indices of COLUMNS that are shown."""
    widths = [_widest([_heading(i), *(cells[i] for cells in lines)]) + GAP for i in range(len(COLUMNS))]
    widths[0] = max(widths[0], NARROWEST + GAP)
    later, transfer, exact = range(len(COLUMNS) - 3, len(COLUMNS))
    shown = list(range(later))
    has_later = any(cells[later] != "–" for cells in lines)
    for index, is_measured in ((later, has_later), (exact, results.has_canaries), (transfer, bool(results.base))):
        if is_measured and sum(widths[i] for i in [*shown, index]) <= width:
            shown.append(index)
    return sorted(shown)


def _heading(index: int) -> str:
    return COLUMNS[index].replace(", ", "\n")


def _widest(texts: Sequence[str]) -> int:
    return max(cell_len(line) for text in texts for line in text.split("\n"))


def _table(title: str, caption: str, random_weights: bool) -> Table:
    """A table without columns, which says so if the weights are random."""
    if random_weights:
        title, caption = f"{title}\n{RANDOM_WEIGHTS}", f"{RANDOM_WEIGHTS.capitalize()}. {caption}"
    return Table(
        title=Text(title), caption=Text(caption), caption_justify="left", title_justify="left", box=HORIZONTALS,
        pad_edge=False,
    )  # fmt: skip


ORDERS = (
    "± is the sample standard deviation: over seeds in the row of an order, over the orders' means in the last row. "
    "Holdout is the final loss per answer token, averaged over tasks."
)


def orders_table(runs: Sequence[RunResults], width: int = 80) -> Group:
    """One protocol in several orders of its tasks: drift, final holdout and, with canaries, the change of exact match
    of each condition; a row for each order, and one for their mean. Conditions that do not fit into ``width`` follow in
    further tables. Clauses: CL-2, CL-3, CL-7, CL-8.
    """
    shown = {"drift": "drift, %", "holdout": "holdout, nats"}
    if any(results.has_canaries for results in runs):
        shown["exact_match"] = "exact match"
    columns = {
        name: ["\n".join([label(readable(name), 30), *shown.values()]), *_orders_cells(runs, name, list(shown))]
        for name in runs[0].conditions
    }
    tasks = [[label(task, 30) for task in results.tasks] for results in runs]
    rows = [", ".join(order) for order in tasks] + [f"mean of {len(runs)} orders"]
    first = max(cell_len(task) + 1 for order in tasks for task in order)  # with its comma
    blocks = _blocks({name: _widest(cells) + GAP for name, cells in columns.items()}, width - first - GAP)
    tables = []
    for number, block in enumerate(blocks, start=1):
        title = "Each order of the tasks" + (f", table {number} of {len(blocks)}" if len(blocks) > 1 else "")
        table = _table(title, ORDERS + (EXACT if "exact_match" in shown else ""), runs[0].run.random_weights)
        table.caption = table.caption if number == len(blocks) else None
        table.add_column("order", min_width=first, overflow="fold")
        for name in block:
            table.add_column(columns[name][0], justify="right", no_wrap=True)
        for index, row in enumerate(rows, start=1):
            table.add_row(*map(Text, (row, *(columns[name][index] for name in block))))
            table.add_section()
        tables.append(table)
    return Group(*tables)


def _blocks(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The names in order, as many to a block as there is room for, and at least one."""
    blocks: list[list[str]] = [[]]
    for name in widths:
        if blocks[-1] and sum(widths[other] for other in [*blocks[-1], name]) > room:
            blocks.append([])
        blocks[-1].append(name)
    return blocks


def _orders_cells(runs: Sequence[RunResults], condition: str, names: Sequence[str]) -> list[str]:
    """One cell for each order and one for all, with a line for each figure."""
    figures = [values_of(results, condition, results.seeds) for results in runs]
    cells = ["\n".join(spread(values[name], FORMS[name], ranged=False) for name in names) for values in figures]
    lines = []
    for name in names:
        means = [reference.seed_summary(values[name]).mean for values in figures if values[name]]
        of = f" (of {len(means)})" if 0 < len(means) < len(runs) else ""
        lines.append(spread(means, FORMS[name], ranged=False) + of)
    return [*cells, "\n".join(lines)]


def caption_of(results: RunResults, transfer: bool = True, later: bool = True) -> str:
    """What the columns mean, for this run, and what is said of the paper where its figures are shown. ``transfer``,
    ``later``: whether these columns are shown, where they were measured."""
    caption, paper = MEANINGS, [row for row in paper_rows(results.run) if row.condition in results.conditions]
    caption = caption.format(over_seeds=" and seeds" if len(results.seeds) > 1 else "")
    caption += LATER if later and len(results.tasks) > 1 else ""
    floor = noise_floor(results, results.seeds)
    caption += "" if floor is None else NOISY.format(floor)
    caption += TRANSFER if results.base and transfer else ""
    if results.has_canaries:
        caption += EXACT
        found = [
            f"{signed(row.transfer_exact_match)} for {readable(row.condition)}" for row in paper_fictional(results.run)
        ]
        caption += f" The paper's section 6.2 has {' and '.join(found)}, of another model and scale." if found else ""
    caption += BESIDE if paper else ""
    caption += f" {said}" if (said := said_of(results.texts())) else ""
    return caption + (NOT_ZERO if any(row.condition == "frozen" and row.drift for row in paper) else "")
