"""The one way from a model folder to a causal LM of PyTorch: with the weights of the folder, all of them and no others.

transformers draws a tensor at random where a folder lacks it, leaves out what it does not know, and says so in a
warning. Here each of them is an error with the tensors' names, whoever loads: training, inference, a bench.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from backends.files import printable
from backends.finetune.models.attention import default_attention
from backends.finetune.models.check_fits import stored_quantization
from backends.finetune.models.folder import load_config
from backends.finetune.models.limits import limits_of
from backends.finetune.models.load_errors import load_errors
from backends.finetune.models.packed_weights import packed_at_fault, unusable
from backends.weight_files import DTYPES, Entry, find_tensors
from reference.errors import ModelError

#: Of whole numbers and truth values: buffers such as masks, never weights
_COUNTING = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_SHOWN = 5
AGAIN = "check that config.json and the weights belong to the same model; copy or download it again"


def load_weights(
    folder: Path, dtype: torch.dtype, device: torch.device, *, attention: str | None = None, four_bits: Any = None
) -> Any:
    """The causal LM of a folder, on ``device``, in evaluation mode.

    Args:
        attention: ``attn_implementation`` of transformers; :func:`default_attention` where None.
        four_bits: a configuration of bitsandbytes, to quantize weights that are not quantized yet.

    Raises: ModelError for tensors that are missing, unexpected, of another shape, of a dtype that no weight has, or not
    finite; OutOfMemoryError.
    """
    config = load_config(folder)
    stored = stored_quantization(folder, config)
    _check_before(folder, config, find_tensors(folder), packed=stored == "4bit")
    load: Any = AutoModelForCausalLM.from_pretrained  # its type leaves out that it may give two values
    options: dict[str, Any] = {"attn_implementation": attention or default_attention(config, device.type)}
    if four_bits is not None or stored != "none":
        options["device_map"] = {"": device}
    if four_bits is not None and stored == "none":
        options["quantization_config"] = four_bits
    with load_errors(folder):
        model, found = load(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in ``found``, by name
            output_loading_info=True,
            **options,
        )
        if "device_map" not in options:
            _into_memory(model.to(device))
    check_loaded(folder, model.eval(), found)
    if "device_map" not in options:  # bitsandbytes settles how it computes when it first does: that is left to the run
        _check_computes(folder, model)
    return model


def _into_memory(model: Any) -> None:
    """Weights on a CPU may be a map of their file, and would change, or end the process, when somebody writes to it."""
    if model.device.type == "cpu":
        for value in (*model.parameters(), *model.buffers()):
            value.data = value.data.clone()


def check_loaded(folder: Path, model: Any, found: Any) -> None:
    """Raise ModelError unless what transformers says of a loading, and the weights themselves, are without fault.

    ``found``: the second result of ``from_pretrained(output_loading_info=True)``. What a family's code leaves out on
    purpose, such as the rotary frequencies in old files and a head that is tied, is not in it.
    """
    problems = {
        "in 4 bits that are not whole": unusable(model),
        "missing": sorted(found["missing_keys"]),
        "of another shape": [
            f"{name}, {tuple(stored)} for {tuple(expected)}"
            for name, stored, expected in sorted(found["mismatched_keys"])
        ],
        "unexpected": sorted(found["unexpected_keys"]),
        "that could not be read": [str(message) for message in found["error_msgs"]],
    }
    for what, names in problems.items():
        if names:
            raise _refused(folder, what, names, f"each tensor of a {type(model).__name__}, and no other")
    _check_head(folder, model)
    broken = [name for name, value in model.named_parameters() if value.is_floating_point() and not _is_finite(value)]
    broken += [name for name, value in model.named_buffers() if value.is_floating_point() and bool(value.isnan().any())]
    if broken:
        dtype = model.get_parameter(broken[0]).dtype if broken[0] in dict(model.named_parameters()) else "its own dtype"
        raise _refused(folder, "with NaN or infinity", broken, f"finite numbers, in {dtype}")


def _check_before(folder: Path, config: Any, entries: dict[str, Entry], *, packed: bool) -> None:
    """Hold the headers of the files against the configuration, before any memory is taken.

    Names may differ between files and code, so that only the sizes can be compared with certainty here: a model with
    more values than the files would be drawn at random in part, however large that part is.
    """
    shapes = expected_shapes(folder, config)
    described = "the tensors that config.json describes"
    if packed:
        for what, names in packed_at_fault(shapes, entries).items():
            if names:
                raise _refused(folder, what, names, described)
        return
    floats = set(DTYPES.values())
    for name, entry in entries.items():
        is_weight = name in shapes or any(known.endswith(f".{name}") for known in shapes)
        if entry.dtype not in floats and (is_weight or entry.dtype not in _COUNTING):
            raise ModelError(
                f"{entry.file}: {printable(name)}",
                got=f"dtype {printable(entry.dtype)}",
                allowed=", ".join(DTYPES.values()),
                remedy="take the model without quantization, or save it in bfloat16",
            )
    need, have = (sum(map(math.prod, group)) for group in (shapes.values(), [e.shape for e in entries.values()]))
    if need <= have:
        return
    differ = [
        f"{name}, {entries[name].shape} for {shape}"
        for name, shape in shapes.items()
        if name in entries and entries[name].shape != shape
    ]
    if differ:
        raise _refused(folder, "of another shape", differ, described)
    absent = [name for name in shapes if not any(end in entries for end in _endings(name))]
    raise _refused(folder, "missing", absent or list(shapes), f"{described}: {need:,} values, not {have:,}")


def _endings(name: str) -> list[str]:
    """A name, and what is left of it without its first words: the base model of a causal LM is saved without them."""
    words = name.split(".")
    return [".".join(words[first:]) for first in range(max(1, len(words) - 1))]


def expected_shapes(folder: Path, config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each parameter of a model with this configuration, tied ones once; no memory is taken for them.

    Raises: ModelError for a configuration that no model can be built from.
    """
    with load_errors(folder), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return {name: tuple(value.shape) for name, value in model.named_parameters()}


def _check_head(folder: Path, model: Any) -> None:
    """Where the folder has a head that differs from the embedding it is tied to, transformers takes the former."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and model._tied_weights_keys
    if tied and head is not None and head.weight is not embedding.weight:
        raise ModelError(
            f"model folder {folder}: the head's weights",
            got="other values than the embedding",
            allowed="the same values, as config.json says tie_word_embeddings true",
            remedy="set tie_word_embeddings to false in config.json if the head is meant to be its own",
        )


def _check_computes(folder: Path, model: Any) -> None:
    """Read a few tokens: tensors can fit a configuration that computes nothing with them (a negative head, epsilon)."""
    limits = limits_of(model.config)
    ids = torch.arange(min(4, limits.vocabulary, limits.positions or 4), device=model.device)[None]
    with load_errors(folder), torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if not _is_finite(logits):
        raise ModelError(
            f"model folder {folder}",
            got="a model whose logits are NaN or infinite",
            allowed="finite logits for a few tokens",
            remedy=AGAIN,
        )


def _is_finite(value: torch.Tensor) -> bool:
    """Without a mask as large as the tensor: the least and the largest are NaN where any value is."""
    if value.numel() == 0:
        return True
    return bool(torch.stack(value.detach().aminmax()).isfinite().all())


def _refused(folder: Path, what: str, names: list[str], allowed: str) -> ModelError:
    shown = "; ".join(printable(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ModelError(f"model folder {folder}", got=f"tensors {what}: {shown}{more}", allowed=allowed, remedy=AGAIN)
