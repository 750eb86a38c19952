"""Benchmarks of a task's adapters, as a picture that fits a phone."""

import io

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from backends.finetune.report.labels import RANDOM_WEIGHTS, label
from backends.finetune.report.pictures.style import FAINT, INK, STYLE, heading, legend_below
from backends.finetune.runs.evaluation_record import BARE, BOTH, LORA, Evaluation, Row

COLOURS = {BARE: FAINT, LORA: "#56B4E9", BOTH: "#009E73"}


def draw_evaluation(evaluation: Evaluation) -> bytes:
    """A PNG: per benchmark and metric a bar for each that answered, with a line of one standard error to each side.

    Fractions share an axis in percent; every other metric has its own.
    """
    fractions = [row for row in evaluation.shown if _is_fraction(row)]
    others = [[row] for row in evaluation.shown if not _is_fraction(row)]
    panels = [part for part in (fractions, *others) if part] or [[]]
    with style.context(STYLE):
        heights = [0.55 + 1.05 * max(len(part), 1) for part in panels]
        figure = Figure(figsize=(4.6, 1.15 + sum(heights)), layout="constrained")
        for axes, part in zip(
            figure.subplots(len(panels), squeeze=False, height_ratios=heights).flat, panels, strict=True
        ):
            _panel(axes, part, 100 if part is fractions else 1)
        title = f"{label(evaluation.task, 24)} on {label(evaluation.model, 22)}"
        heading(figure, f"{title}\n{RANDOM_WEIGHTS}" if evaluation.random_weights else title, fontsize=10.5)
        answering = [name for name in COLOURS if any(name in row.scores for row in evaluation.rows)]
        handles: list[Artist] = [Patch(facecolor=COLOURS[name], label=name) for name in answering]
        limit = "" if evaluation.limit is None else f", {evaluation.limit} texts at most"
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label=f"± one standard error{limit}"))
        legend_below(figure, handles, ncols=1, fontsize=9.5)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=240)
    return stream.getvalue()


def _is_fraction(row: Row) -> bool:
    return all(score.value is not None and 0 <= score.value <= 1 for score in row.scores.values())


def _panel(axes: Axes, rows: list[Row], scale: int) -> None:
    for place, row in enumerate(rows):
        for index, (name, score) in enumerate(row.scores.items()):
            height = place + 0.26 * (index - (len(row.scores) - 1) / 2)
            value = scale * (score.value or 0)
            error = scale * (score.stderr or 0)
            axes.barh([height], [value], height=0.24, color=COLOURS[name])
            if error:
                axes.errorbar([value], [height], xerr=[error], color=INK, linewidth=1.2, capsize=2.5)
            text = "none" if score.value is None else f"{value:.1f}" if scale == 100 else f"{value:.4g}"
            axes.annotate(
                text, (value + error, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
            )
    axes.set_yticks(range(len(rows)), [_title(row) for row in rows], fontsize=9.5)
    axes.set_ylim(max(len(rows), 1) - 0.45, -0.55)
    axes.margins(x=0.2)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    if scale == 100:
        axes.set_xlim(left=0)
        axes.set_xlabel("%")


def _title(row: Row) -> str:
    """Benchmark, metric, and how the answer was read, a line each."""
    lines = [label(row.benchmark, 18), label(row.metric, 18)]
    lines += [] if row.filter == "none" else [label(row.filter, 18)]
    return "\n".join([*lines, "(less is better)"] if row.higher_is_better is False else lines)
