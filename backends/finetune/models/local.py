"""Find a model of the zoo on this machine. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from backends.finetune.models.zoo import ZooModel
from reference.errors import ModelError


def local_folder(model: ZooModel, check: Callable[[Path], None]) -> Path:
    """The folder ``$CRMA_MODELS/NAME``, or else the snapshot in the cache of Hugging Face.

    Args:
        check: raises ModelError for a folder that is not a whole model.

    Raises: ModelError where there is neither, saying how to get one.
    """
    own = os.environ.get("CRMA_MODELS")
    if own and (folder := Path(own).expanduser() / model.name).exists():
        check(folder)
        return folder
    found = "nowhere on this machine"
    if snapshot := _snapshot(model.hub_id):
        try:
            check(snapshot)
        except ModelError as error:
            found = f"not whole in the cache of Hugging Face ({error.got})"
        else:
            return snapshot
    place = f"{Path(own).expanduser() / model.name}" if own else "FOLDER"
    raise ModelError(
        "model",
        got=f"{model.name} ({model.hub_id}, licence {model.licence}), {found}",
        allowed=f"a whole model in $CRMA_MODELS/{model.name} or in the cache of Hugging Face, or its folder by --model",
        remedy=f"hf download {model.hub_id} --local-dir {place}, then --model {place}; nothing is downloaded here; or "
        "--random-weights, which runs the same architecture with weights that mean nothing",
    )


def _snapshot(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
