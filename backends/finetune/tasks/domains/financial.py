"""Financial: prose of the docstrings of financetoolkit. A document is one source file."""

import ast
import re
from collections.abc import Iterator

from backends.finetune.tasks.domains.candidates import Candidate, answers
from backends.finetune.tasks.domains.packages import package_folder
from backends.finetune.tasks.domains.source_trees import parse, source_files, walk_public

_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns?|Raises|Notes?|Examples?|Yields|Attributes)\s*:", re.M)
#: sentences about the software instead of finance
_PLUMBING = (
    r"(?i)\b(DataFrames?|API|MCP|pandas|dict|JSON|parameters?|bool|str|None|True|False|endpoint|cached?|arguments?"
    r"|columns?|class|methods?|functions?|module|init\w*|Toolkit|default\w*|kwargs|plot\w*|database|published|documentation"
    r"|validat\w+|raise[sd]?|error|returned|reported|download\w*|see|NaN|tuples?|lists?|calls?)\b"
    r"|^(Get|Gets|Retrieve|Retrieves|Return|Returns|Collect|Collects|Show|Reference|References|Also known as)\b"
)
#: folder of the package -> its subject; the other folders hold no finance
_SUBJECTS = {
    "discovery": "stock screening",
    "econometrics": "econometrics",
    "economics": "economics",
    "etf": "exchange-traded funds",
    "fixedincome": "fixed income",
    "models": "company valuation",
    "options": "option pricing",
    "performance": "performance measurement",
    "portfolio": "portfolio management",
    "ratios": "financial ratios",
    "risk": "risk measurement",
    "technicals": "technical analysis",
}


def candidates() -> Iterator[Candidate]:
    """Passages of the text before the list of arguments; the question names the quantity and its subject."""
    for path, file in source_files(package_folder("financetoolkit")):
        parsed, subject = parse(file), _SUBJECTS.get(path.partition("/")[0])
        for name, node in walk_public(parsed[0]) if parsed and subject else ():
            verb, _, quantity = name.rpartition(".")[2].partition("_")
            if verb not in ("get", "collect", "calculate"):
                continue  # a helper, not a quantity
            asked = f"What should an investor know about the {quantity.replace('_', ' ')} in {subject}?"
            text = _SECTION.split(ast.get_docstring(node) or "")[0]
            for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*•]|\d+\.)\s)", text):
                definition = re.sub(r"^\s*(?:Calculate|Compute|Determine|Estimate)s?\s+(?=the\b|an?\b)", "", paragraph)
                definition = definition[:1].upper() + definition[1:]
                for example in answers(asked, definition, _PLUMBING):
                    yield Candidate(path, example)
