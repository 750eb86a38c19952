"""Which tensors the functions take. Clause: MIX-10."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.dtypes import refused_dtype

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_floats(**tensors: Tensor) -> None:
    """Raises: DtypeError for a tensor of anything but floats of 16 bits or more, and for what is no tensor."""
    for field, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise refused_dtype(field, type(tensor).__name__)
        if tensor.dtype not in FLOATS:
            raise refused_dtype(field, str(tensor.dtype).removeprefix("torch."))
