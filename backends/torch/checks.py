"""What the functions refuse before they compute: other dtypes than floats, and shapes that do not fit."""

import torch
from torch import Tensor

from reference.dtypes import refused_dtype
from reference.errors import NonFiniteError, ShapeError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_floats(**tensors: Tensor) -> None:
    """Raises: DtypeError for a tensor of anything but floats of 16 bits or more, and for what is no tensor (MIX-10)."""
    for field, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise refused_dtype(field, type(tensor).__name__)
        if tensor.dtype not in FLOATS:
            raise refused_dtype(field, str(tensor.dtype).removeprefix("torch."))


def require_square_logits(mix_logits: Tensor) -> None:
    """Raises: DtypeError; ShapeError unless ``mix_logits`` are matrices (..., n, n). Clause: SINK-1."""
    require_floats(mix_logits=mix_logits)
    if mix_logits.ndim < 2 or mix_logits.shape[-1] != mix_logits.shape[-2] or mix_logits.shape[-1] == 0:
        raise ShapeError(
            "mix_logits",
            got=tuple(mix_logits.shape),
            allowed="(..., n, n) with n >= 1",
            remedy="pass one square matrix of logits per layer",
        )


def require_one_strength(strength: Tensor) -> None:
    """Raises: ShapeError unless there is one value for all streams. Clause: MIX-4."""
    if strength.numel() != 1:
        raise ShapeError(
            "strength",
            got=tuple(strength.shape),
            allowed="a single value",
            remedy="use one gate per layer: one per stream would let the adapter expand",
        )


def require_finite(field: str, values: Tensor) -> None:
    """Raises: NonFiniteError if ``values`` holds NaN or infinity. Synchronises the device: not for hot paths."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            field,
            got="NaN or infinity",
            allowed="finite values only",
            remedy="restore the last good adapter state; lower the learning rate of the parameter group",
        )
