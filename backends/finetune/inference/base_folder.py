"""The base model that a run was trained on, whose folder the run names but does not hold."""

from pathlib import Path

from backends.finetune.inference.run_adapters import RunAdapters
from backends.finetune.models.fingerprint import check_fingerprint
from backends.finetune.models.marker import is_random
from backends.finetune.models.random_weights import SIZES, random_model_folder
from backends.finetune.models.resolve import resolve_model
from backends.finetune.models.zoo import find_model
from reference.errors import ModelError


def base_folder(run: RunAdapters, model: str | Path | None = None) -> Path:
    """``model`` where it is given; else that of the run's protocol, with the same random weights where it had some.

    Raises: ModelError, also where a run with random weights is given a model with real ones, or the reverse.
    """
    name = str(model or run.protocol.model)
    if model is None and run.random_weights and find_model(name) is not None:
        for size in SIZES:
            folder = random_model_folder(name, size=size)
            if folder.name == run.model:
                return folder
    folder = resolve_model(name)
    if run.fingerprint is not None:
        check_fingerprint(run.fingerprint, run.model, folder)
    if is_random(folder) != run.random_weights:
        kinds = "weights as they were trained", "random weights"
        raise ModelError(
            "model",
            got=f"{folder.name}, with {kinds[is_random(folder)]}",
            allowed=f"{run.model}, with {kinds[run.random_weights]}, as the run had it",
            remedy="name its folder with --model",
        )
    return folder
