"""Answers counted right or wrong: canaries recalled over the phases, and the inference toggle on a panel."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from backends.finetune.report.labels import label, readable
from backends.finetune.report.pictures import style
from backends.finetune.report.rows import panel_rows
from backends.finetune.runs.results import RunResults


def exact_match(results: RunResults) -> Figure | None:
    """Per task the fraction of its canaries recalled after each phase; a dotted line for the bare base model."""
    tasks = [task for task in results.tasks if any(task in record.exact_match for record in results.phases.values())]
    if not tasks:
        return None
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(10, 1.3 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    shown: dict[str, None] = {}
    titles = dict(zip(results.tasks, style.task_labels(results, 24), strict=True))
    for index, axes in enumerate(panels):
        if index >= len(tasks):
            axes.set_axis_off()
            continue
        for name in results.conditions:
            paths = _paths(results, name, tasks[index])
            if paths.size == 0:
                continue
            shown[name] = None
            mark, phases = style.mark_of(name), np.arange(1, len(results.tasks) + 1)
            reached = np.isfinite(paths).any(axis=0)
            mean = np.nanmean(100 * paths[:, reached], axis=0)
            axes.plot(
                phases[reached], mean, color=mark.colour, linestyle=mark.line, marker=mark.marker, markersize=4.5,
                linewidth=1.3, clip_on=False,
            )  # fmt: skip
            style.band(axes, phases[reached], 100 * paths[:, reached], mark.colour, alpha=0.13)
        base = [
            record.exact_match[tasks[index]] for record in results.base.values() if tasks[index] in record.exact_match
        ]
        if base:
            axes.axhline(100 * float(np.mean(base)), color=style.INK, linewidth=1, linestyle=":")
        axes.set_title(titles[tasks[index]], fontsize=9.5)
        axes.set_ylim(0, 100)
        axes.set_xlim(0.8, len(results.tasks) + 0.2)
        axes.set_xticks(range(1, len(results.tasks) + 1))
        axes.set_xlabel("after phase", fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("canaries recalled (%)", fontsize=9)
    style.legend_below(figure, [style.handle_of(name, marker=True) for name in shown])
    dotted = " (dotted: the bare base model)" if any(record.exact_match for record in results.base.values()) else ""
    style.heading(figure, f"Exact match by greedy decoding{dotted}")
    return figure


EXACT_MATCH = style.Picture(
    "exact_match.png",
    exact_match,
    "How many of a task's canaries the model completes word for word. The line starts in the task's "
    "own phase, or before it where the condition was asked earlier.",
)


def _paths(results: RunResults, condition: str, task: str) -> np.ndarray:
    """(seeds, phases), NaN where the task was not asked for and after the last finished phase."""
    column = results.tasks.index(task)
    paths = [results.exact_match_matrix(condition, seed)[:, column] for seed in results.seeds]
    return np.array([path for path in paths if np.isfinite(path).any()])


#: a count of PanelRow -> what answered, and how strongly its bar is drawn
WAYS = {
    "with_crma": ("with CRMA and LoRA", 1.0),
    "without_crma": ("CRMA bypassed", 0.7),
    "without_lora": ("LoRA bypassed", 0.45),
    "without_both": ("the bare base model", 0.2),
}


def panel_picture(results: RunResults) -> Figure | None:
    """Questions answered rightly with and without CRMA and LoRA, with Wilson's 95% intervals."""
    rows = panel_rows(results)
    if not rows:
        return None
    ways = [way for way in WAYS if any(getattr(row, way) is not None for row in rows)]
    height = 0.76 / len(ways)
    figure = Figure(figsize=(10, 1.6 + 0.31 * len(ways) * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = style.mark_of(row.condition).colour
        for index, way in enumerate(ways):
            if (count := getattr(row, way)) is None:
                continue
            y = place + height * (index - (len(ways) - 1) / 2)
            low, high = row.interval(count)
            axes.barh([y], [100 * count / row.questions], height=0.9 * height, color=colour, alpha=WAYS[way][1])
            axes.hlines(y, 100 * low, 100 * high, color=style.INK, linewidth=1.2)
            axes.annotate(
                f"{count}/{row.questions}", (0, y), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=8, color=style.INK,
            )  # fmt: skip
        style.note(axes, f"p = {row.p:.2g}", (1.01, place), (0, 0), va="center", fontsize=9, annotation_clip=False)
    axes.set_yticks(range(len(rows)), [f"{label(readable(row.condition), 24)}, seed {row.seed}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("answered rightly (%), with Wilson's 95% interval; p: McNemar's exact test, two-sided")
    handles = [Patch(facecolor="#777777", alpha=WAYS[way][1], label=WAYS[way][0]) for way in ways]
    style.legend_below(figure, handles, ncols=len(ways), fontsize=9)
    style.heading(figure, "Inference toggle: the same adapters, some of them bypassed")
    return figure


PANEL = style.Picture(
    "panel.png",
    panel_picture,
    "The same adapters answer the same questions: all of them, without the shared CRMA, without LoRA, and neither. p "
    "compares the first two.",
)
