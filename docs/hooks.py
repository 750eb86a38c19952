"""What mkdocs does besides: pages that lie elsewhere in the repository, and formulas without a script.

A formula stands between dollar signs, ``$...$`` in a line and ``$$...$$`` by itself, in LaTeX. It becomes MathML when
the site is built, which browsers show by themselves.
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
#: written for the repository, and shown where they lie in it
ELSEWHERE = (
    "spec/*.md",
    "spec/vectors/README.md",
    "bench/README.md",
    "bench/results/*.png",
    "backends/jax/README.md",
    "conformance/examples/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to what is no page of the site become their text: the repository has it."""
    folder = Path(page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        target = (ROOT / folder / link[2]).resolve()
        on_site = target.is_relative_to(ROOT) and files.get_file_from_path(target.relative_to(ROOT).as_posix())
        return link[0] if on_site or page.file.generated_by is None else link[1]

    if not page.file.src_uri.endswith(".md"):
        return markdown
    parts = re.split(r"(```.*?```|`[^`\n]*`)", LINK.sub(kept, markdown), flags=re.DOTALL)
    return "".join(part if part.startswith("`") else FORMULA.sub(_mathml, part) for part in parts)


def _mathml(formula: re.Match[str]) -> str:
    return str(convert(formula[1] or formula[2], display="block" if formula[1] else "inline"))
