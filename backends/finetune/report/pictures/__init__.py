"""The pictures of a run, as PNG bytes: drawn on Figure objects, without pyplot and so without global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from backends.finetune.report.labels import RANDOM_WEIGHTS, budget_of
from backends.finetune.report.pictures.answers import exact_match, panel_picture
from backends.finetune.report.pictures.bars import WITH_PAPER, advantage_panel, bar_handles, drift_bars, drift_panel
from backends.finetune.report.pictures.certificates import displacement_over_steps, spectral_norm
from backends.finetune.report.pictures.fonts import families_for, without_advice
from backends.finetune.report.pictures.gradients import gradient_norms
from backends.finetune.report.pictures.heat_map import (
    change_norm,
    draw_colour_bar,
    draw_heat,
    holdout_change,
    holdout_heat_map,
    more_heat_maps,
)
from backends.finetune.report.pictures.loss import loss_over_phases, more_losses
from backends.finetune.report.pictures.style import BOUND, STYLE
from backends.finetune.report.pictures.trade_off import budget_trade_off
from backends.finetune.runs.results import RunResults

PAINTERS: dict[str, Callable[[RunResults], Figure | None]] = {
    "holdout.png": holdout_heat_map,
    "holdout_more.png": more_heat_maps,
    "loss.png": loss_over_phases,
    "loss_more.png": more_losses,
    "drift.png": drift_bars,
    "budget.png": budget_trade_off,
    "exact_match.png": exact_match,
    "panel.png": panel_picture,
    "spectral_norm.png": spectral_norm,
    "displacement.png": displacement_over_steps,
    "gradient_norms.png": gradient_norms,
}


def draw_pictures(results: RunResults) -> dict[str, bytes]:
    """File name -> PNG, 1500 pixels wide (the overview 1725), for every picture that ``results`` has data for."""
    drawn = {}
    # Names come from users: no mathematics in them, and of a glyph that even so is missing no warning.
    with without_advice(), matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        matplotlib.rcParams["font.family"] = families_for(results.tasks)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, paint in {"overview.png": overview, **PAINTERS}.items():
            if (figure := paint(results)) is not None:
                drawn[name] = _png(figure)
                if results.run.random_weights:
                    drawn[name] = _with_line(drawn[name], RANDOM_WEIGHTS)
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _with_line(png: bytes, text: str) -> bytes:
    """The picture with a line of text below it, where nothing in the picture can cover it."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    strip = Figure(figsize=(picture.width / 150, 0.26))
    strip.text(0.01, 0.35, text, fontsize=9, color=BOUND, va="baseline")
    with Image.open(io.BytesIO(_png(strip))) as opened:
        line = opened.convert("RGB")
    both = Image.new("RGB", (picture.width, picture.height + line.height), "white")
    both.paste(picture, (0, 0))
    both.paste(line, (0, picture.height))
    buffer = io.BytesIO()
    both.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def overview(results: RunResults) -> Figure | None:
    """For a README: the heat maps of MODULAR and NAIVE, and the bars of drift and advantage."""
    present = [name for name in ("modular", "naive") if holdout_change(results, name)]
    shown = present or [name for name in results.conditions if holdout_change(results, name)][:2]
    if not shown:
        return None
    figure = Figure(figsize=(11.5 if len(shown) > 1 else 9, 4.5), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=[1.75 if len(shown) > 1 else 1.0, 1])
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    grid = left.add_gridspec(2, len(shown), height_ratios=[3.2, 0.1])
    norm = change_norm(results, shown)
    numbered = len(results.tasks) <= 6
    for index, name in enumerate(shown):
        axes = left.add_subplot(grid[0, index])
        draw_heat(axes, results, name, norm, size=8.5 if numbered else 0)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("measured after training on")
    text = "numbers: holdout loss, nats per answer token\n" if numbered else ""
    text += f"colour: {'its' if numbered else 'holdout loss,'} change since the task's own phase (diagonal), %"
    draw_colour_bar(left, left.add_subplot(grid[1, :]), norm, text)
    _overview_bars(right, results)
    return figure


def _overview_bars(part: SubFigure, results: RunResults) -> None:
    shown = [name for name in results.conditions if results.complete_seeds(name)] or list(results.conditions)
    if len(shown) > WITH_PAPER:
        kept = [name for name in shown if budget_of(name) is None and name not in ("modular-still", "frozen-raised")]
        shown = kept[:9]
    upper, lower = part.subplots(2, 1)
    drift_panel(upper, results, shown, narrow=True)
    advantage_panel(lower, results, shown, narrow=True)
    upper.set_title("Drift")
    lower.set_title("Advantage over FROZEN")
    if handles := bar_handles(results, with_paper=len(shown) <= WITH_PAPER)[1:]:
        part.legend(handles=handles[-1:], loc="outside lower right", ncols=1, fontsize=7.5)
