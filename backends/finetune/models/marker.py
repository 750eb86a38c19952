"""The file that says that a model folder's weights are random."""

from __future__ import annotations

from pathlib import Path

MARKER = "random_weights.json"


def is_random(folder: Path) -> bool:
    """Whether the weights of a model folder are random: every output of a run on it must say so."""
    return (folder / MARKER).is_file()
