"""Find the matrix of a block that writes last into the residual stream, by watching which weights are used last."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.torch.decoder import Call, Decoder, calls_of, run_probe
from reference.errors import ModelError


def writers(model: nn.Module, decoder: Decoder) -> list[NDArray[np.float64]]:
    """For each block the matrix W (d, m) of ``y = W h + b``, the last product in it: as a rule the MLP's output.

    The module may store W or its transpose (Conv1D of GPT-2), and may be wrapped for LoRA; which of the two it is, is
    read from what it computes. Raises: ModelError if the last weights used are no such matrix (quantized, offloaded,
    a mixture of experts). Clause: INIT-3.
    """
    with ExitStack() as hooks:  # copied, since some models add to the result in place afterwards (Falcon)
        uses = [hooks.enter_context(calls_of(_weight_owners(block), copied=True)) for block in decoder.blocks]
        run_probe(model)
    blocks = zip(decoder.blocks, uses, decoder.names, strict=True)
    return [_matrix(block, calls[-1] if calls else None, decoder.hidden_size, name) for block, calls, name in blocks]


def _weight_owners(module: nn.Module) -> Iterator[nn.Module]:
    """Modules with matrices of their own; of a PEFT layer, the layer that it wraps."""
    if isinstance(wrapped := getattr(module, "base_layer", None), nn.Module):
        yield from _weight_owners(wrapped)
        return
    if any(tensor.ndim >= 2 for tensor in _own_tensors(module)):
        yield module
    for child in module.children():
        yield from _weight_owners(child)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)  # some quantizers keep the weight in a buffer


def _matrix(block: nn.Module, use: Call | None, hidden_size: int, name: str) -> NDArray[np.float64]:
    if use is None:
        raise _refusal(name, "no weights in use")
    if any(p.ndim > 2 for p in block.parameters()) or any(isinstance(m, nn.ModuleList) for m in block.modules()):
        raise _refusal(name, "several matrices that write side by side (experts?)")
    path = next(f"{name}.{path}" for path, module in block.named_modules() if module is use.module)
    weight, bias = getattr(use.module, "weight", None), getattr(use.module, "bias", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta or weight.ndim != 2:
        raise _refusal(path, "no floating-point matrix (quantized or offloaded?)")
    if not isinstance(use.given, Tensor) or not isinstance(use.result, Tensor):
        raise _refusal(path, "not one tensor in and one tensor out")
    given, result, stored = (_numbers(tensor) for tensor in (use.given, use.result, weight))
    shift = _numbers(bias) if isinstance(bias, Tensor) else 0.0
    for matrix in (stored, stored.T):
        if matrix.shape == (hidden_size, given.shape[-1]) and result.shape[-1] == hidden_size:
            difference = np.abs(given @ matrix.T + shift - result).max()
            if difference <= 0.05 * np.abs(result).max():  # rounding in bfloat16 is below 1%, the transpose far off
                return np.ascontiguousarray(matrix)
    raise _refusal(path, f"{type(use.module).__name__} with weight {tuple(weight.shape)}, which does not write there")


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return numbers


def _refusal(field: str, got: str) -> ModelError:
    return ModelError(
        field,
        got=got,
        allowed="for basis='principal': one floating-point matrix per block that writes last into the residual stream",
        remedy="start from basis='random'",
    )
