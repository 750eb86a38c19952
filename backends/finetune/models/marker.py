"""The file that says that a model folder's weights are random."""

from pathlib import Path

MARKER = "random_weights.json"


def is_random(folder: Path) -> bool:
    """Whether the weights of a model folder are random: every output of a run on it must say so."""
    return (folder / MARKER).is_file()


def random_size(folder: Path) -> str | None:
    """Size of random weights: "reduced" where they are in the folder, "full" where they are drawn when the model is
    built; None for weights that are not random.
    """
    if not is_random(folder):
        return None
    return "reduced" if (folder / "model.safetensors").is_file() else "full"
