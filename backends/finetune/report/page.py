"""The report of a run folder: the summary table, the pictures and one self-contained HTML page."""

import base64
import json
from pathlib import Path

import jinja2

from backends.atomic import atomic_write
from backends.files import printable
from backends.finetune.report.labels import RANDOM_WEIGHTS, readable
from backends.finetune.report.paper import paper_fictional, paper_panels
from backends.finetune.report.pictures import PICTURES, draw_pictures
from backends.finetune.report.pictures.overview import OVERVIEW
from backends.finetune.report.rows import paired_rows, panel_rows, seed_rows, signed, summary_rows
from backends.finetune.report.summary import COLUMNS, caption_of
from backends.finetune.runs.records import PhaseRecord, TextRecord
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import checked_results
from reference import wilson_interval
from reference.errors import DiskSpaceError, RunFolderError

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    # Turned the other way by a character in a name, a line would say what nobody wrote.
    finalize=lambda value: printable(value, keep="\n\t") if isinstance(value, str) else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"readable": readable, "signed": signed}


def write_report(run_folder: Path | str) -> list[Path]:
    """Write ``pictures/*.png`` and ``report.html`` into the run folder, each at once or not at all; list them.

    Works on an interrupted run: what is missing is left out, and the page says so. Nothing in the page is fetched
    from elsewhere, and nothing in it can run.

    Raises: RunFolderError if results.jsonl is missing or damaged, or the folder cannot be written; DiskSpaceError.
    """
    folder = Path(run_folder)
    results = checked_results(folder)
    pictures = draw_pictures(results)
    page = report_html(results, pictures)
    files = {folder / "pictures" / name: content for name, content in pictures.items()}
    # A lone surrogate, which JSON can smuggle into a name, has no UTF-8 form.
    files[folder / "report.html"] = page.encode("utf-8", "xmlcharrefreplace")
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def report_html(results: RunResults, pictures: dict[str, bytes]) -> str:
    """The page as text; every value from the results is escaped, the pictures are data URIs."""
    conditions, seeds = results.conditions, results.seeds
    phases = [record for name in conditions for seed in seeds for record in results.phases_of(name, seed)]
    figures = [
        (picture, "data:image/png;base64," + base64.b64encode(pictures[picture.name]).decode())
        for picture in PICTURES
        if picture.name in pictures and picture is not OVERVIEW  # a digest of pictures that the page shows in full
    ]
    return TEMPLATES.get_template("report.html").render(
        run=results.run,
        random_weights=RANDOM_WEIGHTS if results.run.random_weights else "",
        names=conditions,
        seeds=seeds,
        parameters=_parameters(results),
        finished=len(results.phases),
        expected=len(conditions) * len(seeds) * len(results.tasks),
        columns=COLUMNS if results.has_canaries else COLUMNS[:-1],
        rows=summary_rows(results),
        seed_rows=seed_rows(results),
        paired=paired_rows(results),
        caption=caption_of(results),
        recalls=_recalls(results),
        fictional=paper_fictional(results.run),
        panels=panel_rows(results),
        paper_panels=paper_panels(results.run),
        fraction=_fraction,
        cut_options=sum(panel.cut for panel in results.panels.values()),
        figures=figures,
        phases=phases,
        texts=_texts(results),
        config=json.dumps(results.run.config, indent=2, ensure_ascii=False),
    )


def _fraction(right: int, questions: int) -> str:
    low, high = wilson_interval(right, questions)
    return f"{right}/{questions} ({100 * low:.1f} to {100 * high:.1f}%)"


def _recalls(results: RunResults) -> list[tuple[PhaseRecord, float | None, float]]:
    """Of each task with canaries: its own phase, and the fractions of the base model and after the last phase."""
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            phases, base = results.phases_of(condition, seed), results.base.get(seed)
            for record in phases:
                if record.task in record.exact_match and record.task in phases[-1].exact_match:
                    bare = base.exact_match.get(record.task) if base else None
                    rows.append((record, bare, phases[-1].exact_match[record.task]))
    return rows


def _parameters(results: RunResults) -> list[str]:
    """The trainable values of each condition that has finished a phase; those with the same ones together."""
    names: dict[str, list[str]] = {}
    for condition in results.conditions:
        counts = [f"{name} {count:,}" for name, count in results.parameters(condition).items()]
        if counts:
            names.setdefault(", ".join(counts), []).append(readable(condition))
    return [f"{' · '.join(conditions)}: {counts}" for counts, conditions in names.items()]


def _texts(results: RunResults) -> list[tuple[int, str, str, TextRecord]]:
    """Per seed, task and side: the texts, and what max_tokens left out of them."""
    return [
        (seed, task, side, record)
        for seed in results.seeds
        for task, sides in results.texts([seed]).items()
        for side, record in sides.items()
    ]


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a report. Raises: RunFolderError, DiskSpaceError."""
    try:
        atomic_write(path, content)
    except DiskSpaceError:
        raise
    except OSError as error:
        raise RunFolderError(
            str(path),
            got=error.strerror or str(error),
            allowed="a folder that can be written to",
            remedy="check the permissions of the folder and of the file",
        ) from error
