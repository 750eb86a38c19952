"""From the name of a base model to its folder on this machine. Nothing is downloaded."""

import os
import re
from pathlib import Path

from backends.finetune.models.folder import ALLOWED, check_model_folder
from backends.finetune.models.packaged import PACKAGED, packaged_model
from backends.finetune.models.zoo import ZooModel, find_model
from reference.errors import ModelError


def resolve_model(name_or_path: str) -> Path:
    """Folder of a base model: a local one as it is; SmolLM2-135M-Instruct for the name "smollm2", Gemma-3-270M for
    "gemma3-270m", both out of packages; one of the zoo, by its short name or Hugging Face id, where it lies in
    ``$CRMA_MODELS/NAME`` or whole in the cache of Hugging Face.

    Raises:
        ModelError: unknown name, or a folder that is not a whole model.
        MissingPackageError: one of the first two without the packages that hold and unpack it.
        DiskSpaceError: no room in the cache folder.

    Clauses: ERR-1, ERR-2.
    """
    if name_or_path in PACKAGED:
        return packaged_model(name_or_path)
    folder = Path(os.path.expanduser(name_or_path))
    if not folder.exists() and (model := find_model(name_or_path)):
        return _local_folder(model)
    if not name_or_path or not folder.exists():
        is_hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name_or_path) is not None
        raise ModelError(
            "model",
            got=repr(name_or_path) + (", no folder here; it may be a Hugging Face id" if is_hub_id else ""),
            allowed=ALLOWED,
            remedy=f"hf download {name_or_path} --local-dir FOLDER, then name that folder; nothing is downloaded here"
            if is_hub_id
            else "check the spelling; a relative path starts at the folder that the command runs in",
        )
    check_model_folder(folder)
    return folder


def _local_folder(model: ZooModel) -> Path:
    """The folder ``$CRMA_MODELS/NAME``, or else the snapshot in the cache of Hugging Face.

    Raises: ModelError where there is neither, or the first is not a whole model, saying how to get one.
    """
    own = os.environ.get("CRMA_MODELS")
    if own and (folder := Path(own).expanduser() / model.name).exists():
        check_model_folder(folder)
        return folder
    found = "nowhere on this machine"
    if snapshot := _snapshot(model.hub_id):
        try:
            check_model_folder(snapshot)
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
