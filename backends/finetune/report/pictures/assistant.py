"""What became of the tasks of an assistant, as a picture that fits a phone."""

import io

from matplotlib import style
from matplotlib.figure import Figure

from backends.finetune.report.labels import label, percent
from backends.finetune.report.pictures.style import FAINT, INK, STYLE
from backends.finetune.runs.assistant_folder import Assistant

GOOD, BAD = "#009E73", "#D55E00"


def draw_assistant(assistant: Assistant) -> bytes:
    """A PNG: per task its loss before any training, after its own phase and now; and the change since its own phase."""
    names = list(assistant.tasks)
    with style.context(STYLE):
        figure = Figure(figsize=(7.2, 1.5 + 0.42 * max(len(names), 2)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        for place, task in enumerate(assistant.tasks.values()):
            bare, own, now = (each.loss for each in (task.record.bare, task.record.own, task.now))
            left.plot([bare, own], [place, place], color=FAINT, linewidth=1.4, zorder=1)
            left.plot([bare], [place], "o", color=FAINT, markersize=6)
            left.plot([own], [place], "s", color=INK, markersize=6)
            left.plot([now], [place], "D", color=GOOD if now <= own else BAD, markersize=5)
            change = 100 * (now / own - 1)
            right.barh([place], [change], color=GOOD if change <= 0 else BAD, height=0.5)
            right.annotate(
                percent(change) + ("%" if change else ""),
                (max(change, 0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        left.set_yticks(range(len(names)), [label(name, 22) for name in names])
        left.set_ylim(max(len(names), 1) - 0.5, -0.5)
        left.set_xlabel("loss (nats per answer token)")
        right.set_xlabel("change since its own phase (%)")
        right.axvline(0, color=INK, linewidth=0.8)
        right.margins(x=0.35)
        right.tick_params(axis="y", length=0)
        for axes in (left, right):
            axes.grid(False, axis="y")
        marks = (("o", FAINT, "before any training"), ("s", INK, "after its own phase"), ("D", GOOD, "now"))
        handles = [left.plot([], [], mark, color=colour, label=text)[0] for mark, colour, text in marks]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8.5)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()
