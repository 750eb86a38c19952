"""A model whose ``save_pretrained`` writes the CRMA adapters beside what it writes anyway.

Whatever saves a model of transformers or PEFT (Trainer, its hub, ``push_to_hub``) comes through that method.
"""

import inspect
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from backends.atomic import atomic_write
from backends.torch.adapter import PARAMETERS, CRMAAdapter
from backends.torch.attach import attached_backbone
from backends.torch.backbone import CRMABackbone, require_finite_state
from backends.torch.certificates import AdapterState
from backends.torch.decoder import base_model
from backends.torch.preparation import is_sharded
from backends.torch.state import encoded
from reference.errors import ConfigError

STATE_FILE = "crma.safetensors"


def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own, and the adapters beside it. Raises: ConfigError for ``push_to_hub=True``, NonFiniteError."""
    own = type(self).save_pretrained
    bound = inspect.signature(own).bind(self, save_directory, *args, **kwargs).arguments
    options = {**bound, **bound.get("kwargs", {})}
    if options.get("push_to_hub"):  # would upload before the adapters are written
        raise ConfigError(
            "push_to_hub", got=True, allowed="False", remedy="call model.push_to_hub or trainer.push_to_hub instead"
        )
    result = own(self, save_directory, *args, **kwargs)
    if _carries_adapters(self):
        backbone = attached_backbone(self)
        gathered = options.get("state_dict") if sharded(backbone) else None
        parameters = backbone.finite_state() if not gathered else _from_state_dict(backbone, gathered)
        if options.get("is_main_process", True):
            atomic_write(Path(save_directory) / STATE_FILE, encoded_state(backbone, parameters))
    return result


def save_with_adapters(model: Any) -> None:
    """Let a model (and the one that PEFT wraps) save its adapters too. A deep copy of it saves its own."""
    for each in {id(each): each for each in (model, base_model(model))}.values():
        if hasattr(each, "save_pretrained"):
            each.save_pretrained = MethodType(save_pretrained, each)


def _from_state_dict(backbone: CRMABackbone, gathered: dict[str, torch.Tensor]) -> AdapterState:
    """The adapters in what FSDP gathered for the one process that writes."""
    found = [
        [
            next(value for key, value in gathered.items() if key.endswith(f"{name}.crma.{parameter}"))
            for name in backbone.names
        ]
        for parameter in PARAMETERS
    ]
    state = AdapterState(torch.stack(found[0]), torch.cat(found[1]), torch.stack(found[2]))
    require_finite_state(state)
    return state


def _carries_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, CRMAAdapter) for module in model.modules())


def sharded(backbone: CRMABackbone) -> bool:
    """Whether reading the adapters takes all processes."""
    return any(is_sharded(parameter) for parameter in backbone.parameters())


def encoded_state(backbone: CRMABackbone, parameters: AdapterState) -> bytes:
    """The state file of ``backbone`` with these values."""
    return encoded(parameters, backbone.config, backbone.base_model, backbone.base_model_sha256)
