"""A task by itself, as `crma export` writes it: LoRA and CRMA for a base model, or one merged model with its CRMA."""

import re
from pathlib import Path
from typing import Any

import torch

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.files import read_json, sha256_of
from backends.finetune.engines.torch.model import load_base
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.run_adapters import TaskAdapter
from backends.finetune.inference.shared_adapter import attach_shared
from backends.finetune.models.fingerprint import check_fingerprint
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol
from reference.errors import StateFileError

MANIFEST, CRMA = "crma.json", "crma.safetensors"
FORMAT, VERSION = "crma-task", 1


def load_task(folder_or_repo: str | Path, base: str | Path | None = None, *, device: str = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer of a task that `crma export` wrote, for ``generate``, ``pipeline`` or an evaluation harness.

    Args:
        folder_or_repo: the folder; or OWNER/NAME of a repository on the Hugging Face Hub.
        base: the base model's folder or name; by default the one that the task names. A merged task has it within.
        device: "cpu" or "cuda".

    Raises: StateFileError for a folder that is none, damaged, or of another base model; ModelError.
    Source: ours. Clauses: STATE-2, ERR-1.
    """
    folder = _folder(str(folder_or_repo))
    about = read_manifest(folder)
    protocol = about["settings"]
    if about["merged"]:
        path = folder
        model = load_base(path, protocol, torch.device(device))
        attach_shared(model, folder / CRMA).backbone.requires_grad_(False)
        return model, load_tokenizer(path)
    path = resolve_model(str(base if base is not None else about["base_model"]))
    check_fingerprint(about["fingerprint"], about["base_model"], path)
    model = load_base(path, protocol, torch.device(device))
    adapter = TaskAdapter((folder,), folder / CRMA)
    tokenizer = load_tokenizer(path)
    if "chat_template.jinja" in about["files"]:
        tokenizer.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    registry = AdapterRegistry(model, tokenizer, {about["task"]: adapter}, shared=attach_shared(model, folder / CRMA))
    registry.use(about["task"])
    return registry.model, tokenizer


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an exported folder is, once its files are those that were written. Raises: StateFileError."""
    try:
        about: Any = read_json(folder / MANIFEST)
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {about['format']!r}, version {about['version']!r}")
        for name, digest in about["files"].items():
            if "/" in name or sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not the file that was exported")
        merged, settings = bool(about["merged"]), Protocol.model_validate(about["settings"])
        needed = {CRMA, "config.json"} if merged else {CRMA, CONFIG, WEIGHTS}
        if missing := sorted(needed - about["files"].keys()):
            raise ValueError(f"no digest of {missing[0]}")
        fingerprint = {str(part): str(digest) for part, digest in about["fingerprint"].items()}
        known = {"base_model": str(about["base_model"]), "fingerprint": fingerprint, "files": dict(about["files"])}
        return {**known, "merged": merged, "task": str(about["task"]), "settings": settings}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateFileError(
            str(folder),
            got=f"no whole task ({type(error).__name__}: {error})",
            allowed=f"a folder as `crma export` writes it, with {MANIFEST} and the files that it names",
            remedy="export or download it again",
        ) from error


def _folder(name: str) -> Path:
    if Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise StateFileError(
            name,
            got=f"no folder here, and nothing from the Hub ({' '.join(str(error).split())[:200]})",
            allowed="a folder as `crma export` writes it, or OWNER/NAME of a repository that can be reached",
            remedy="check the spelling; or fetch it with: hf download REPO --local-dir FOLDER",
        ) from error
