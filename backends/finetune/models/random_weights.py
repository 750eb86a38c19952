"""Models with random weights: the architecture of a model of the zoo, full or reduced, where its weights are not to be
had. What such a run learns says nothing about the model; its memory, its speed and its certificates do.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from backends.finetune.models.cache_folder import built_once
from backends.finetune.models.folder import check_model_folder, load_config, missing_extra, read_json
from backends.finetune.models.marker import MARKER, is_random
from backends.finetune.models.zoo import ZOO, ZooModel, find_model
from reference.errors import ConfigError, ModelError, OutOfMemoryError

Size = Literal["full", "reduced"]
SIZES: tuple[Size, ...] = ("full", "reduced")
SEED = 0
__all__ = ["SEED", "SIZES", "Size", "build_random", "is_random", "random_model_folder"]


def random_model_folder(name: str, *, size: Size = "reduced", layers: int | None = None) -> Path:
    """A folder with configuration, tokenizer and the marker ``random_weights.json``, kept in the cache folder.

    Args:
        name: short name or Hugging Face id of a model of the zoo.
        size: "full", the published architecture, whose weights are drawn when the model is built and are never stored;
            or "reduced", four layers of the same kind about a hundred wide, whose weights (float32) are in the folder,
            so that every backend has the same.
        layers: another number of decoder layers, for measurements that are extrapolated.

    Raises: ModelError for a model that is not of the zoo, ConfigError, DiskSpaceError. Clauses: ERR-1, ERR-2.
    """
    model = find_model(name)
    if model is None:
        raise ModelError(
            "model",
            got=f"{name!r} with random weights",
            allowed=", ".join(ZOO),
            remedy="choose one of these, whose architecture is known here",
        )
    if size not in SIZES or (layers is not None and layers < 1):
        raise ConfigError(
            "--size", got=f"{size!r}, {layers} layers", allowed=" or ".join(SIZES), remedy="leave it at its default"
        )
    try:
        from backends.finetune.models.tokenizer import training_text

        fields = model.fields | (model.reduced if size == "reduced" else {})
        if layers is not None:
            fields = fields | {"num_hidden_layers": layers}
        texts = training_text()
        recipe = hashlib.sha256(json.dumps([fields, SEED, texts], sort_keys=True).encode()).hexdigest()

        def build(folder: Path) -> None:
            _build_folder(folder, model, size, fields, texts)

        folder = built_once(f"{model.name}-random-{size}-{recipe[:12]}", build, room="some megabytes")
    except ImportError as error:
        raise missing_extra(error) from error
    check_model_folder(folder)
    return folder


def build_random(folder: Path, dtype: Any, device: Any, *, attention: str | None = None) -> Any:
    """The model of such a folder, in evaluation mode.

    Weights are drawn in ``dtype`` on ``device`` from the seed in the marker, as transformers draws them before training
    (normal, sd ``initializer_range``), so that no more memory is taken than the model has; those of "reduced" are read.
    The draws differ from one kind of device, and one dtype, to another. The caller's random numbers are left alone.

    Args:
        attention: ``attn_implementation`` of transformers; by default plain attention on a CPU and where scores are
            capped, as for weights that are read (:func:`backends.finetune.engines.torch.model.attention`).

    Raises: ModelError.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from backends.finetune.models.attention import default_attention
    from backends.finetune.models.load_errors import load_errors
    from backends.finetune.models.weights import load_weights

    device = torch.device(device)
    if not is_random(folder):
        raise ModelError(
            str(folder),
            got=f"a folder without {MARKER}",
            allowed="one that random_model_folder has written",
            remedy="load a model with weights of its own by from_pretrained",
        )
    if (folder / "model.safetensors").is_file():
        return load_weights(folder, dtype, device, attention=attention)
    config = load_config(folder)
    _check_room(folder, config, dtype, device)
    of_gpu = [device] if device.type == "cuda" else []
    with load_errors(folder), torch.random.fork_rng(devices=of_gpu), torch.device(device):
        torch.manual_seed(read_json(folder, MARKER)["seed"])
        attention = attention or default_attention(config, device.type)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def _check_room(folder: Path, config: Any, dtype: Any, device: Any) -> None:
    """No file says how large a model may be whose weights are drawn, so the device's memory does.

    Raises: OutOfMemoryError. What is free is left to the framework, which says so itself.
    """
    import psutil  # type: ignore[import-untyped]
    import torch

    from backends.finetune.models.weights import expected_shapes

    need = dtype.itemsize * sum(math.prod(shape) for shape in expected_shapes(folder, config).values())
    on_gpu = device.type == "cuda"
    have = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    if need > have:
        raise OutOfMemoryError(
            f"random weights of {folder.name}",
            got=f"{need / 2**30:,.1f} GiB",
            allowed=f"at most the {have / 2**30:,.1f} GiB of the device",
            remedy="take the reduced size, a smaller model, or a device with more memory",
        )


def _build_folder(folder: Path, model: ZooModel, size: Size, fields: dict[str, Any], texts: list[str]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from backends.finetune.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    vocabulary = {"vocab_size": len(tokenizer)} if size == "reduced" else {}
    config = AutoConfig.for_model(**fields | vocabulary | ids)
    config.dtype = torch.float32 if size == "reduced" else torch.bfloat16
    config.save_pretrained(folder)
    if size == "reduced":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    (folder / MARKER).write_text(json.dumps({"model": model.name, "size": size, "seed": SEED}), encoding="utf-8")
    check_model_folder(folder)
