"""LoRA adapters of PEFT on one base model: read and checked whole, then attached, activated and taken off again.

Source: PEFT's public functions; the checks, ours.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from backends.adapter_folder import CONFIG, WEIGHTS, read_adapter
from reference.errors import StateFileError

#: in the settings of an exported LoRA: PEFT, which does not know it, warns by its name where the LoRA is loaded alone
NEEDS_CRMA = "answers_only_with_its_CRMA_use_load_task_of_crma"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class AdapterContent(NamedTuple):
    """A PEFT folder in memory."""

    folder: Path
    config: LoraConfig
    tensors: dict[str, Tensor]


def load_adapter(folder: Path, device: torch.device | str, expected: Mapping[str, str] | None = None) -> AdapterContent:
    """Read a PEFT folder of LoRA into memory; ``expected``: the SHA-256 of its files, by name, where a run recorded it.

    Raises: StateFileError for one that is missing, damaged, other than recorded, or of another kind.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():  # PEFT would look for it on the hub
            raise refused(folder, f"a folder without {name}" if folder.is_dir() else "no such folder")
    try:
        data, settings = read_adapter(folder, expected=expected)
        settings.pop(NEEDS_CRMA, None)
        config = LoraConfig.from_peft_type(**LoraConfig.check_kwargs(**settings))
        tensors = {name: tensor.to(device) for name, tensor in safetensors.torch.load(data).items()}
        config.base_model_name_or_path = None  # where the model lay when it was trained; PEFT would warn
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise refused(folder, f"{type(error).__name__}: {error}") from error
    if not isinstance(config, LoraConfig):
        raise refused(folder, f"an adapter of type {getattr(config, 'peft_type', None)}")
    if bad := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise refused(folder, f"{bad[0]} with NaN or infinity")
    return AdapterContent(folder, config, tensors)


def refused(folder: Path, got: str) -> StateFileError:
    """The error for an adapter folder that this model cannot take."""
    return StateFileError(
        str(folder),
        got=got,
        allowed="a LoRA in PEFT's format, of this base model",
        remedy="take the folder that `crma finetune` or save_pretrained wrote for this model",
    )


class PeftAdapters:
    """The adapters in memory, by key. Works on ``model`` in place; its forward pass stays that of the causal LM.

    PEFT holds one adapter for each configuration, a slot, whose A and B are pointed at the tensors of the adapter that
    answers. To give PEFT every adapter instead would cost more with each: adding the tenth to SmolLM2-135M takes two
    seconds, since PEFT visits all tensors of all adapters. Adapters that answer together (O-LoRA) have a slot each.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._peft: Any = None  # a PeftModel as soon as there is a slot
        self._sizes = {name: size for name, module in model.named_modules() if (size := _sizes(module))}
        self._contents: dict[str, AdapterContent] = {}
        self._slots: dict[tuple[str, int], dict[str, nn.Parameter]] = {}  # (configuration, which of its slots)
        self._names: dict[tuple[str, int], str] = {}
        self._active: tuple[tuple[str, int], ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is."""
        return next(self.model.parameters()).device

    def check(self, content: AdapterContent) -> None:
        """Compare names, shapes and rank with the model. Raises: StateFileError."""
        if not content.tensors:
            raise refused(content.folder, "no tensors")
        for key, tensor in content.tensors.items():
            side = next((side for side in (_A, _B) if key.endswith(side)), None)
            if side is None:
                raise refused(content.folder, f"{key}, while only A and B of LoRA are known here")
            module = key.removeprefix(_PREFIX).removesuffix(side)
            if module not in self._sizes:
                raise refused(content.folder, f"{key}, while the model has no linear layer {module}")
            into, out = self._sizes[module]
            rank = tensor.shape[0 if side == _A else -1] if tensor.ndim == 2 else -1
            if tuple(tensor.shape) != ((rank, into) if side == _A else (out, rank)):
                got = f"{key} of shape {tuple(tensor.shape)}, while the layer has {into} inputs and {out} outputs"
                raise refused(content.folder, got)
            other = key.removesuffix(side) + (_B if side == _A else _A)
            if other not in content.tensors:
                raise refused(content.folder, f"{key} without {other}")
            if not content.config.rank_pattern and rank != content.config.r:
                raise refused(content.folder, f"{key} of rank {rank}, while {CONFIG} says r = {content.config.r}")

    def attach(self, key: str, content: AdapterContent) -> None:
        """Keep an adapter in memory, inactive. Raises: StateFileError; then nothing is changed."""
        self.check(content)
        first = (_signature(content), 0)
        if first not in self._slots:
            self._add_slot(first, content)
        slot = self._slots[first]
        if wrong := slot.keys() ^ content.tensors.keys():
            raise refused(content.folder, f"{len(wrong)} tensors missing or unexpected, such as {min(wrong)}")
        if uneven := [name for name, tensor in content.tensors.items() if tensor.shape != slot[name].shape]:
            raise refused(content.folder, f"{uneven[0]} of shape {tuple(content.tensors[uneven[0]].shape)}")
        tensors = {name: tensor.to(slot[name].dtype) for name, tensor in content.tensors.items()}
        self._contents[key] = content._replace(tensors=tensors)

    def detach(self, key: str) -> None:
        """Take an adapter that is not active out of memory."""
        gone = _signature(self._contents.pop(key))
        if all(_signature(content) != gone for content in self._contents.values()):
            for slot in [slot for slot in self._slots if slot[0] == gone]:
                self._remove_slot(slot)

    def activate(self, keys: Sequence[str]) -> None:
        """Answer with the sum of these adapters; with none of them for an empty sequence."""
        taken: list[tuple[str, int]] = []
        for key in keys:
            content = self._contents[key]
            signature = _signature(content)
            slot = (signature, sum(other == signature for other, _ in taken))
            if slot not in self._slots:
                self._add_slot(slot, content)
            for name, parameter in self._slots[slot].items():
                parameter.data = content.tensors[name]
            taken.append(slot)
        if tuple(taken) != self._active:
            self._switch(tuple(taken))

    def _switch(self, slots: tuple[tuple[str, int], ...]) -> None:
        self._active = slots
        if self._peft is not None:  # frozen: unless told not to, PEFT makes the active adapter trainable
            self._peft.base_model.set_adapter([self._names[slot] for slot in slots], inference_mode=True)

    def _add_slot(self, slot: tuple[str, int], content: AdapterContent) -> None:
        """Let PEFT add an adapter of this configuration. Raises: StateFileError; then nothing is changed."""
        name = self._names.setdefault(slot, f"slot_{len(self._names)}")
        config = deepcopy(content.config)  # PEFT writes into it
        try:
            # low_cpu_mem_usage: nothing is drawn at random only to be overwritten
            if self._peft is None:
                self._peft = get_peft_model(self.model, config, adapter_name=name, low_cpu_mem_usage=True)
            else:
                self._peft.add_adapter(name, config, low_cpu_mem_usage=True)
            self._peft.eval()  # what PEFT adds is in training mode: its dropout would answer along
            result: Any = set_peft_model_state_dict(self._peft, dict(content.tensors), name, low_cpu_mem_usage=True)
            missing = [key for key in result.missing_keys if ".lora_" in key and f".{name}." in key]
            if wrong := [*result.unexpected_keys, *missing]:
                raise ValueError(f"{len(wrong)} tensors missing or unexpected, such as {wrong[0]}")
        except (ValueError, RuntimeError, KeyError) as error:
            self._remove_slot(slot)
            raise refused(content.folder, f"{type(error).__name__}: {error}") from error
        own = {
            key.replace(f".{name}.", "."): value for key, value in self._peft.named_parameters() if f".{name}." in key
        }
        self._slots[slot] = own
        self._switch(self._active)

    def _remove_slot(self, slot: tuple[str, int]) -> None:
        self._switch(self._active)
        self._slots.pop(slot, None)
        if self._peft is not None and self._names[slot] in self._peft.peft_config:
            self._peft.base_model.delete_adapter(self._names[slot])


def _signature(content: AdapterContent) -> str:
    """Equal for adapters that can take turns in one slot."""
    config = content.config.to_dict() | {"inference_mode": True}
    return json.dumps([config, sorted(content.tensors)], sort_keys=True, default=lambda value: sorted(value))


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, quantized or not, or of GPT-2's Conv1D."""
    into, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(into, int) and isinstance(out, int):
        return into, out
    if type(module).__name__ == "Conv1D" and isinstance(weight := getattr(module, "weight", None), Tensor):
        return weight.shape[0], weight.shape[1]
    return None
