"""What the CRMA adds to one batch, traced on one layer's adapter with a few real tokens."""

from __future__ import annotations

from typing import Any

from backends.finetune.plan.trace import Cost
from backends.finetune.protocols.protocol import CrmaSection


def crma_cost(hidden_size: int, layers: int, tokens: int, section: CrmaSection, *, bfloat16: bool) -> Cost:
    """Cost of the adapters of all layers for ``tokens`` tokens: bytes kept, less the output, which stands in for the
    block's in what the next block keeps; operations. Of plain PyTorch.
    """
    few, more = (_of_one_layer(hidden_size, count, section, bfloat16) for count in (8, 24))
    each = Cost(*((b - a) / 16 for a, b in zip(_values(few), _values(more), strict=True)))
    fixed = (a - 8 * slope for a, slope in zip(_values(few), _values(each), strict=True))
    return Cost(*(layers * (start + tokens * slope) for start, slope in zip(fixed, _values(each), strict=True)))


def _values(cost: Cost) -> tuple[float, float, float]:
    return cost.kept, cost.forward, cost.backward


def _of_one_layer(hidden_size: int, tokens: int, section: CrmaSection, bfloat16: bool) -> Cost:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from backends.torch import CRMAAdapter

    adapter = CRMAAdapter(hidden_size, section.streams, section.rank, section.iterations, kernels="torch")
    x = torch.zeros(1, tokens, hidden_size, dtype=torch.bfloat16 if bfloat16 else torch.float32, requires_grad=True)
    own = {tensor.untyped_storage()._cdata for tensor in adapter.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with (
        FlopCounterMode(display=False) as forward,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        y = adapter(x)
    own.add(y.untyped_storage()._cdata)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    total = sum(size for number, (_, size) in kept.items() if number not in own)
    return Cost(float(total), float(forward.get_total_flops()), float(backward.get_total_flops()))
