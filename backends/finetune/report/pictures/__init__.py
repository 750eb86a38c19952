"""The pictures of a run, as PNG bytes: drawn on Figure objects, without pyplot and so without global state."""

import io
import warnings

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from backends.finetune.report.labels import RANDOM_WEIGHTS
from backends.finetune.report.pictures.answers import EXACT_MATCH, PANEL
from backends.finetune.report.pictures.bars import DRIFT
from backends.finetune.report.pictures.certificates import DISPLACEMENT, SPECTRAL_NORM
from backends.finetune.report.pictures.fonts import families_for, without_advice
from backends.finetune.report.pictures.gradients import GRADIENT_NORMS
from backends.finetune.report.pictures.heat_map import HOLDOUT, MORE_HOLDOUT
from backends.finetune.report.pictures.loss import LOSS, MORE_LOSSES
from backends.finetune.report.pictures.overview import OVERVIEW
from backends.finetune.report.pictures.style import BOUND, STYLE
from backends.finetune.report.pictures.trade_off import BUDGET
from backends.finetune.runs.results import RunResults

PICTURES = (
    OVERVIEW, HOLDOUT, MORE_HOLDOUT, LOSS, MORE_LOSSES, DRIFT, BUDGET, EXACT_MATCH, PANEL, SPECTRAL_NORM, DISPLACEMENT,
    GRADIENT_NORMS,
)  # fmt: skip


def draw_pictures(results: RunResults) -> dict[str, bytes]:
    """File name -> PNG, 1500 pixels wide (the overview 1725), for every picture that ``results`` has data for."""
    drawn = {}
    # Names come from users: no mathematics in them, and of a glyph that even so is missing no warning.
    with without_advice(), matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        matplotlib.rcParams["font.family"] = families_for(results.tasks)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, paint, _ in PICTURES:
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
