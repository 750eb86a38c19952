"""LoRA of all layers, stacked for the decoder, in the file format of PEFT. Source: LoRA, arXiv 2106.09685.

>>> factors, scale = load_lora("runs/mine/0-frozen/task-1", config)                            # doctest: +SKIP
>>> logits(params, config, ids, lora=decoder_lora(factors, scale))                             # doctest: +SKIP
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import Array
from numpy.typing import NDArray
from safetensors import SafetensorError

from backends.adapter_folder import CONFIG, WEIGHTS, read_adapter, write_adapter
from backends.jax.decoder.config import DecoderConfig
from reference.errors import ConfigError, ModelError

#: What PEFT can do and the decoder does not; each must be absent, or what it is by default.
UNSUPPORTED = (
    "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "layer_replication", "trainable_token_indices", "lora_bias",
)  # fmt: skip


class Factors(NamedTuple):
    """``W + scale B A`` for one projection of all layers: A (layers, r, inputs), B (layers, outputs, r), float32."""

    down: Array
    up: Array


Lora = dict[str, Factors]  # by the path of the projection within a layer, such as "self_attn.q_proj"


def target_projections(config: DecoderConfig, target_modules: str | Sequence[str]) -> list[str]:
    """Which projections "all-linear", a list of names, or a regular expression stands for, as in PEFT.

    Raises: ConfigError for what names no projection, the embedding or the head, or not the same ones in every layer.
    """
    paths = list(config.projections)
    if target_modules == "all-linear":
        return paths
    if isinstance(target_modules, str):
        hits = {
            path: [bool(re.fullmatch(target_modules, _module(i, path))) for i in range(config.layers)] for path in paths
        }
        if any(any(hit) and not all(hit) for hit in hits.values()):
            raise _unknown(target_modules, config, "which matches some layers only")
        chosen = [path for path in paths if any(hits[path])]
    else:
        chosen = [path for path in paths if any(f".{path}".endswith(f".{name}") for name in target_modules)]
        if others := [name for name in target_modules if name.rpartition(".")[2] in ("lm_head", "embed_tokens")]:
            raise _unknown(target_modules, config, f"of which {others[0]} is no projection of a layer")
    if not chosen:
        raise _unknown(target_modules, config, "which names none of them")
    return chosen


def init_lora(config: DecoderConfig, paths: Sequence[str], rank: int, rng: np.random.Generator) -> Lora:
    """A uniform in ``+-1 / sqrt(inputs)``, as PEFT draws it, and B = 0, so that the model is what it was."""
    lora = {}
    for path in paths:
        outputs, inputs = config.projections[path]
        down = rng.uniform(-1, 1, (config.layers, rank, inputs)).astype(np.float32) / np.float32(inputs**0.5)
        lora[path] = Factors(jnp.array(down), jnp.zeros((config.layers, outputs, rank), jnp.float32))
    return lora


def decoder_lora(lora: Lora, scale: float | Array) -> dict[str, tuple[Array, Array, Any]]:
    """What :func:`backends.jax.decoder.logits` takes as ``lora``; ``scale`` is alpha / r."""
    return {path: (factors.down, factors.up, scale) for path, factors in lora.items()}


def save_lora(folder: Path | str, lora: Lora, alpha: float, base_model: str = "") -> None:
    """Write a folder that PEFT loads: tensors and settings, each atomically. Raises: DiskSpaceError."""
    tensors = {}
    for path, factors in lora.items():
        for name, stacked in zip("AB", factors, strict=True):
            for index, matrix in enumerate(np.asarray(stacked, np.float32)):
                tensors[_tensor(index, path, name)] = np.ascontiguousarray(matrix)
    settings = {
        "peft_type": "LORA",
        "r": next(iter(lora.values())).down.shape[1],
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(path.rpartition(".")[2] for path in lora),
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
    write_adapter(
        Path(folder), safetensors.numpy.save(tensors), json.dumps(settings, indent=2, sort_keys=True).encode()
    )


def load_lora(folder: Path | str, config: DecoderConfig) -> tuple[Lora, float]:
    """Factors and scale of a LoRA folder that PEFT, :func:`save_lora` or ``crma finetune`` wrote.

    Raises: ModelError, naming file, tensor or setting, what was found and what is expected.
    """
    folder = Path(folder)
    try:
        data, found = read_adapter(folder)
        settings, tensors = _settings(folder / CONFIG, found), safetensors.numpy.load(data)
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}", f"{WEIGHTS} and {CONFIG} of PEFT") from error
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    lora = {}
    for path, (outputs, inputs) in config.projections.items():
        if _tensor(0, path, "A") in tensors:
            pairs = (("A", (rank, inputs)), ("B", (outputs, rank)))
            lora[path] = Factors(*(_stacked(folder, tensors, config.layers, path, *pair) for pair in pairs))
    if tensors or not lora:
        got = f"{next(iter(tensors))}, which is no factor of a projection" if tensors else "no tensor"
        raise _damaged(folder / WEIGHTS, got, "factors of " + ", ".join(config.projections))
    return lora, scale


def _stacked(
    folder: Path, tensors: dict[str, NDArray[Any]], layers: int, path: str, name: str, shape: tuple[int, int]
) -> Array:
    """The factor of all layers; takes what it reads out of ``tensors``."""
    each = []
    for index in range(layers):
        tensor = _tensor(index, path, name)
        matrix = tensors.pop(tensor, None)
        if matrix is None or matrix.shape != shape:
            got = "no such tensor" if matrix is None else f"shape {matrix.shape}"
            raise _damaged(f"{folder / WEIGHTS}: {tensor}", got, f"shape {shape}, in each of {layers} layers")
        each.append(matrix.astype(np.float32))
    return jnp.array(np.stack(each))


def _settings(path: Path, settings: dict[str, Any]) -> Mapping[str, Any]:
    kind = settings["peft_type"]
    wrong = [(name, settings[name]) for name in UNSUPPORTED if settings.get(name)]
    wrong += [("bias", settings["bias"])] if settings.get("bias", "none") != "none" else []
    wrong += [("peft_type", kind)] if kind != "LORA" else []
    if wrong:
        name, value = wrong[0]
        raise ModelError(
            f"{path}: {name}",
            got=repr(value),
            allowed="plain LoRA",
            remedy="merge the adapter into the model with PEFT's merge_and_unload, and load the merged model",
        )
    return settings


def _module(layer: int, path: str) -> str:
    return f"model.layers.{layer}.{path}"


def _tensor(layer: int, path: str, factor: str) -> str:
    return f"base_model.model.{_module(layer, path)}.lora_{factor}.weight"


def _unknown(target_modules: Any, config: DecoderConfig, why: str) -> ConfigError:
    return ConfigError(
        "target_modules",
        got=f"{target_modules!r}, {why}",
        allowed='"all-linear", or projections of every layer: ' + ", ".join(config.projections),
        remedy='use "all-linear"',
    )


def _damaged(field: Path | str, got: str, allowed: str) -> ModelError:
    return ModelError(
        str(field), got=got, allowed=allowed, remedy="take the adapter that was trained on this model; copy it again"
    )
