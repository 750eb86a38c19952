"""What one batch costs: a forward and a backward pass, in which autograd says what it keeps and torch's flop counter
what is multiplied. A model is traced with shapes only (fake tensors) at two depths, and one layer's CRMA with two short
texts; every figure is linear in layers and in the adapter's tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from backends.finetune.plan.fused_attention import FUSED, register_fused_attention
from backends.finetune.plan.skeleton import skeleton, with_layers
from backends.finetune.protocols.protocol import CrmaSection, LoraSection

DEPTHS = (2, 4)  # even, since Gemma-2 has layers of two kinds in turn


@dataclass(frozen=True)
class Setting:
    """What a trace depends on beside the architecture. ``lora`` None: all parameters are trained. ``fused``: attention
    that keeps no scores, as on a GPU."""

    rows: int
    tokens: int
    answers: int
    precision: str
    lora: LoraSection | None
    checkpoint: bool
    fused: bool


class Cost(NamedTuple):
    """Of one batch: bytes that autograd keeps from the forward pass to the backward one; floating-point operations."""

    kept: float
    forward: float
    backward: float


def trace(config: Any, setting: Setting) -> tuple[Cost, Cost]:
    """Cost of one batch through the whole model, and what each layer adds to it. Raises: ModelError."""
    layers = config.num_hidden_layers
    depths = [min(depth, layers) for depth in DEPTHS]
    costs = [_of_model(with_layers(config, depth), setting) for depth in dict.fromkeys(depths)]
    if len(costs) == 1:  # one or two layers in all
        return costs[0], Cost(*(value / depths[0] for value in costs[0]))
    few, more = costs
    layer, whole = _line(few, more, depths[0], depths[1], layers)
    return whole, layer


def crma_cost(hidden_size: int, layers: int, tokens: int, section: CrmaSection, *, bfloat16: bool) -> Cost:
    """Cost of the adapters of all layers for ``tokens`` tokens: bytes kept, less the output, which stands in for the
    block's in what the next block keeps; operations. Of plain PyTorch.
    """
    few, more = (_of_adapter(hidden_size, count, section, bfloat16) for count in (8, 24))
    _, one_layer = _line(few, more, 8, 24, tokens)
    return Cost(*(layers * value for value in one_layer))


def _line(few: Cost, more: Cost, a: int, b: int, to: int) -> tuple[Cost, Cost]:
    """The slope of the straight line through the costs at ``a`` and ``b``, and its value at ``to``."""
    slope = Cost(*((high - low) / (b - a) for low, high in zip(few, more, strict=True)))
    return slope, Cost(*(value + (to - a) * each for value, each in zip(few, slope, strict=True)))


def _of_model(config: Any, setting: Setting) -> Cost:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from backends.finetune.engines.torch.answer_head import answer_logits
    from backends.finetune.engines.torch.model import round_frozen_linears

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
    if setting.precision == "mixed" and setting.lora is not None:
        round_frozen_linears(model)
    with FakeTensorMode():
        own = _fill(model)
        ids = torch.zeros(setting.rows, setting.tokens, dtype=torch.long)
        places = torch.zeros(setting.answers, dtype=torch.long)

        def compute() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                return answer_logits(model, {"input_ids": ids, "use_cache": False}, places, places)

        return _cost_of(compute, own)


def _of_adapter(hidden_size: int, tokens: int, section: CrmaSection, bfloat16: bool) -> Cost:
    import torch

    from backends.torch import CRMAAdapter

    adapter = CRMAAdapter(hidden_size, section.streams, section.rank, section.iterations, kernels="torch")
    x = torch.zeros(1, tokens, hidden_size, dtype=torch.bfloat16 if bfloat16 else torch.float32, requires_grad=True)
    own = {tensor.untyped_storage()._cdata for tensor in adapter.parameters()}
    return _cost_of(lambda: adapter(x), own, without_output=True)


def _cost_of(compute: Callable[[], Any], own: set[int], *, without_output: bool = False) -> Cost:
    """Of a forward and a backward pass. ``own``: numbers of the storages that were there before."""
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())  # held, so that its number stays its own
        return tensor

    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda tensor: tensor):
        output = compute()
    if without_output:
        kept.pop(output.untyped_storage()._cdata, None)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
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
