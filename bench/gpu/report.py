"""What a section finds, part by part, in a file that its process writes anew after each: a crash loses one part."""

import math
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.files import printable, shortened
from bench import program
from reference.errors import BackendError, DeviceUnavailableError, MissingPackageError

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
#: without which a part cannot be tried at all
_ABSENT = (DeviceUnavailableError, MissingPackageError, ModuleNotFoundError)
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\",;()]+/)+")
Figures = dict[str, Any]


class NotHere(Exception):
    """A part that this machine cannot try, with the reason in words."""


class Report:
    """``device``: "cuda", or "cpu" for the small form of each section, in interpreters."""

    def __init__(self, file: Path, device: str) -> None:
        self.file, self.device = file, device
        self.parts: dict[str, Figures] = {}

    @property
    def small(self) -> bool:
        """Whether sizes are such that a CPU does them in seconds."""
        return self.device == "cpu"

    @contextmanager
    def part(self, name: str) -> Iterator[Figures]:
        """Figures to be filled in; an exception inside is the part's outcome, and the next part goes on."""
        figures: Figures = {}
        outcome, why = PASSED, ""
        try:
            yield figures
        except (*_ABSENT, NotHere) as error:
            outcome, why = SKIPPED, said(error)
        except Exception as error:
            outcome, why = FAILED, said(error)
        self.parts[name] = {"outcome": outcome, "why": why, "figures": plain(figures)}
        program.store(self.file, self.parts)


def at_most(figures: Figures, name: str, value: float, most: float) -> None:
    """Note the figure. Raises: BackendError where it is larger than ``most``, or NaN."""
    figures[name] = value
    if not value <= most:
        raise BackendError(name, got=value, allowed=f"at most {most:g}", remedy="look at the kernel or function")


def same_bits(name: str, results: Any, others: Any) -> None:
    """Raise BackendError where two sequences of tensors differ in a bit."""
    import torch

    for index, (one, other) in enumerate(zip(results, others, strict=True)):
        if not torch.equal(one, other):
            raise BackendError(
                name, got=f"other bits in result {index}", allowed="equal bits", remedy="look for sums without order"
            )


def said(error: BaseException) -> str:
    """The error in one line, without the folders and the name of this machine."""
    text = str(error) if isinstance(error, NotHere) else f"{type(error).__name__}: {error}"
    return without_places(shortened(printable(" ".join(text.split())), 600))


def without_places(text: str) -> str:
    """``text`` with file names for paths, and without the host's name."""
    text = _PATH.sub("", text)
    name = platform.node()
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "HOST", text) if name else text


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: numbers that are not finite are words there."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return without_places(value) if isinstance(value, str) else value
