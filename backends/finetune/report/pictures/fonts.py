"""Fonts for names in any script: matplotlib brings DejaVu Sans, and the rest is looked for among the installed ones."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from matplotlib import font_manager, rcParams

FAMILY = "DejaVu Sans"
#: families that have a glyph for every character, or another one than it says
_NO_LETTERS = ("Last Resort", "STIXNon", "STIXSize", "cm")


def families_for(names: Iterable[str]) -> list[str]:
    """DejaVu Sans, and installed families that together draw what it lacks of ``names``, as far as there are any."""
    families, missing = [FAMILY], {letter for name in names for letter in name if letter.isprintable()}
    missing -= _drawn(FAMILY, missing)
    installed = {font.name for font in font_manager.fontManager.ttflist} if missing else set()
    found = {name: _drawn(name, missing) for name in sorted(installed) if not name.startswith(_NO_LETTERS)}
    while missing and found:
        best = max(found, key=lambda name: len(found[name] & missing))
        if not found[best] & missing:
            break
        families.append(best)
        missing -= found[best]
    return families


@contextmanager
def without_advice() -> Iterator[None]:
    """No lines on the terminal about a weight that a font lacks: titles are bold, and many fonts are not."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def is_drawn(text: str) -> bool:
    """Whether the families that are set now have every character of ``text``."""
    letters = set(text)
    return letters <= set().union(*(_drawn(family, letters) for family in rcParams["font.family"]))


def _drawn(family: str, letters: set[str]) -> set[str]:
    """Those of ``letters`` that the family's upright regular font has."""
    try:
        font = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))
    except (OSError, RuntimeError, ValueError):  # a damaged font, or none of that name
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}
