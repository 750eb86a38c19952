"""Take a task out of an assistant to where Hugging Face models are used: a folder with all that answers for it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from backends.adapter_folder import read_adapter, write_adapter
from backends.atomic import atomic_write, disk_space_errors
from backends.files import sha256_of
from backends.finetune.engines.torch.model import load_base
from backends.finetune.inference.exported_task import CRMA, FORMAT, MANIFEST, VERSION
from backends.finetune.inference.peft_adapters import NEEDS_CRMA
from backends.finetune.learning.card import model_card
from backends.finetune.models.fingerprint import check_fingerprint
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.resolve import resolve_model
from backends.finetune.runs.assistant_folder import Assistant, AssistantFolder
from reference.errors import ConfigError, ModelError, RunFolderError


def export(
    folder: Path | str,
    task: str,
    to: Path | str,
    *,
    merge: bool = False,
    model: str | Path | None = None,
    push: str | None = None,
) -> Path:
    """Write one task of an assistant into the new folder ``to``, and return it.

    It holds the LoRA in PEFT's format, the CRMA that the task answers with, tokenizer and chat template, a manifest
    with the digest of each, and a model card. Nothing in it names a place on this machine.
    :func:`backends.finetune.load_task` loads it.

    Args:
        merge: one model with the LoRA merged into its weights, which are float32 then, and the CRMA beside it.
        model: the base model's folder, where it has moved. push: OWNER/NAME, where it is uploaded to the Hub as well.

    Raises: RunFolderError, ConfigError for an unknown task or a folder that is not empty, ModelError, DiskSpaceError.
    Clauses: STATE-2, ERR-1. Source: ours.
    """
    source, target = AssistantFolder(folder), Path(to)
    found = source.read()
    if task not in found.tasks:
        raise ConfigError(
            "--task", got=repr(task), allowed=", ".join(found.tasks) or "no task yet", remedy="name one of these"
        )
    place = target.resolve()
    is_free = not target.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir())))
    if not is_free or place == Path.cwd() or source.path.resolve() in (place, *place.parents):
        raise ConfigError(
            "--to",
            got=str(to),
            allowed="a new or empty folder outside the assistant's, that is no link and not the current folder",
            remedy="choose another one",
        )
    source.check_files(found, {found.tasks[task].record.phase, found.tasks[task].version})
    path = resolve_model(str(model or found.found_at))
    check_fingerprint(found.fingerprint, found.model, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        with disk_space_errors(target):
            _write(part, source, found, task, path, merge=merge)
            part.chmod(0o755)
            if target.exists():
                target.rmdir()
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if push is not None:
        _push(target, push)
    return target


def _write(part: Path, source: AssistantFolder, found: Assistant, task: str, model: Path, *, merge: bool) -> None:
    taught = found.tasks[task]
    files = source.files(taught.record.phase, taught.version)
    tokenizer = load_tokenizer(model)
    if found.protocol.template not in ("auto", "none"):
        tokenizer.chat_template = found.protocol.template
    elif found.protocol.template == "none":
        tokenizer.chat_template = None  # it was not trained with one
    tokenizer.save_pretrained(part)
    shutil.copyfile(files.crma, part / CRMA)
    if merge:
        _merge(part, files.lora, model, found)
    else:
        weights, settings = read_adapter(files.lora, required=True)
        settings |= {"base_model_name_or_path": found.model, NEEDS_CRMA: True}
        write_adapter(part, weights, json.dumps(settings, indent=2, sort_keys=True).encode())
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "merged": merge,
        "base_model": found.model,
        "fingerprint": found.fingerprint,
        "settings": _portable(found, merge=merge),
    }
    card = model_card(found, task, merged=merge)
    (part / "README.md").write_bytes(card.encode("utf-8", "xmlcharrefreplace"))  # half of a surrogate pair in a name
    # all but the card, which an owner may write on
    about["files"] = {path.name: sha256_of(path) for path in sorted(part.iterdir()) if path.name != "README.md"}
    atomic_write(part / MANIFEST, json.dumps(about, indent=2).encode())


def _portable(found: Assistant, *, merge: bool) -> dict[str, Any]:
    """The settings that decide what answers, and nothing that names a place."""
    changed = {"model": found.model, "gradient_checkpointing": False}
    if merge:
        changed |= {"precision": "float32", "quantization": "none"}
    return found.protocol.model_copy(update=changed).model_dump(mode="json")


def _merge(part: Path, lora: Path, model: Path, found: Assistant) -> None:
    """Merge the LoRA into the weights, in float32, by PEFT. Raises: ModelError for quantized weights."""
    from peft import PeftModel

    if found.protocol.quantization != "none":
        raise ModelError(
            "--merge",
            got=f"{found.protocol.quantization} weights",
            allowed="whole weights, into which a LoRA can be merged without another rounding",
            remedy="export without --merge",
        )
    exact = found.protocol.model_copy(update={"precision": "float32"})
    merged: Any = PeftModel.from_pretrained(load_base(model, exact, torch.device("cpu")), str(lora))
    merged = merged.merge_and_unload()
    merged.config._name_or_path = found.model
    merged.save_pretrained(part)


def _push(folder: Path, repo: str) -> None:
    """Raises: RunFolderError where the Hub cannot be reached, or refuses."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # of many kinds: no network, no token, no such owner
        raise RunFolderError(
            f"--push {repo}",
            got=" ".join(str(error).split())[:200],
            allowed="a repository that can be written to, and a token (hf auth login)",
            remedy=f"the folder is whole: hf upload {repo} {folder} . (with HF_HUB_OFFLINE=0)",
        ) from error
