"""What one batch costs: a forward and a backward pass of shapes only (fake tensors), in which autograd says what it
keeps and torch's flop counter what is multiplied. Two depths are traced; every figure is linear in the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.finetune.plan.fused_attention import FUSED, register_fused_attention
from backends.finetune.plan.skeleton import skeleton, with_layers
from backends.finetune.protocols.protocol import LoraSection

DEPTHS = (2, 4)  # even, since Gemma-2 has layers of two kinds in turn


@dataclass(frozen=True)
class Setting:
    """What a trace depends on beside the architecture. ``lora`` None: all parameters are trained. ``fused``: attention
    that keeps no scores, as on a GPU."""

    rows: int
    tokens: int
    precision: str
    lora: LoraSection | None
    checkpoint: bool
    fused: bool


@dataclass(frozen=True)
class Cost:
    """Of one batch: bytes that autograd keeps from the forward pass to the backward one; floating-point operations."""

    kept: float
    forward: float
    backward: float


def trace(config: Any, setting: Setting) -> tuple[Cost, Cost]:
    """Cost of one batch through the whole model, and what each layer adds to it. Raises: ModelError."""
    depths = [min(depth, config.num_hidden_layers) for depth in DEPTHS]
    costs = [_trace(with_layers(config, depth), setting) for depth in dict.fromkeys(depths)]
    if len(costs) == 1:  # one or two layers in all
        return costs[0], Cost(*(value / depths[0] for value in _values(costs[0])))
    step = depths[1] - depths[0]
    layer = Cost(*((more - less) / step for less, more in zip(*map(_values, costs), strict=True)))
    rest = config.num_hidden_layers - depths[0]
    pairs = zip(_values(costs[0]), _values(layer), strict=True)
    return Cost(*(value + rest * each for value, each in pairs)), layer


def _values(cost: Cost) -> tuple[float, float, float]:
    return cost.kept, cost.forward, cost.backward


def _trace(config: Any, setting: Setting) -> Cost:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    fused = setting.fused and not getattr(config, "attn_logit_softcapping", None)
    if fused:
        register_fused_attention()
    model = skeleton(
        config,
        setting.lora,
        bfloat16=setting.precision == "bfloat16" and setting.lora is not None,
        attention=FUSED if fused else "eager",
        checkpoint=setting.checkpoint,
    )
    mixed = setting.precision == "mixed" or (setting.precision == "bfloat16" and setting.lora is None)
    with FakeTensorMode():
        own = _fill(model)
        kept: dict[int, tuple[Any, int]] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage, storage.nbytes())  # held, so that its number stays its own
            return tensor

        ids = torch.zeros(setting.rows, setting.tokens, dtype=torch.long)
        with (
            FlopCounterMode(display=False) as forward,
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        ):
            logits = model(input_ids=ids, use_cache=False).logits
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    total = sum(size for _, size in kept.values())
    return Cost(float(total), float(forward.get_total_flops()), float(backward.get_total_flops()))


def _fill(model: Any) -> set[int]:
    """Put fake CPU tensors in the place of those on the meta device, shared ones shared; their storages' numbers."""
    import torch
    from torch import nn

    made: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is None:
                    continue
                if id(value) not in made:
                    tensor: Any = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                    if isinstance(value, nn.Parameter):
                        tensor = nn.Parameter(tensor, requires_grad=value.requires_grad)
                    made[id(value)] = (value, tensor)  # the old one is held, so that its id stays its own
                values[name] = made[id(value)][1]
    return {tensor.untyped_storage()._cdata for _, tensor in made.values()}
