"""Which tensors are taken: floats of 16 bits or more; a y in another dtype could not hold what the adapter changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from backends import load_backend
from backends.torch import CRMAAdapter
from backends.torch.backbone import prepare_adapters
from backends.torch.residual_mixing import adapter_strength
from reference.errors import DtypeError

FLOAT8 = [name for name in dir(torch) if name.startswith(("float8_", "float4_"))]
REFUSED = (*FLOAT8, "int8", "int64", "uint16", "bool", "complex64")


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    kind = getattr(torch, dtype)
    return torch.zeros(*shape[:-1], shape[-1] * kind.itemsize, dtype=torch.uint8).view(kind)


def in_each_place(dtype: str, project: Callable[..., Any], mix: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """By the name of the argument: the functions with a tensor of ``dtype`` in that place."""
    mixing = {"x": torch.ones(4, 9), "mixing": torch.eye(3), "strength": torch.ones(1), "basis": torch.ones(3, 2, 9)}
    gate, basis = torch.zeros(1), torch.ones(3, 2, 9)
    calls: dict[str, Callable[[], Any]] = {
        "mix_logits": lambda: project(tensor(dtype, 3, 3)),
        "gate_logit": lambda: adapter_strength(tensor(dtype, 1), basis),
        "basis": lambda: adapter_strength(gate, tensor(dtype, 3, 2, 9)),
    }
    for name, value in mixing.items():
        calls[f"{name}, of mixing"] = partial(mix, **mixing | {name: tensor(dtype, *value.shape)})
    return calls


@pytest.mark.clause("MIX-10", "ERR-1", "ERR-2")
@pytest.mark.parametrize("kind", ["torch", "triton"])
@pytest.mark.parametrize("dtype", REFUSED)
def test_other_dtypes_are_refused_by_name(dtype: str, kind: Any) -> None:
    from backends.torch.functions import functions

    if kind == "triton":
        pytest.importorskip("triton")
        load_backend("torch-triton")  # without a GPU it sets up the interpreter, before the kernels are imported
    for place, call in in_each_place(dtype, *functions(kind, "cpu")).items():
        with pytest.raises(DtypeError, match=f"got dtype {dtype}; allowed: a float of 16 bits") as caught:
            call()
        assert caught.value.field == place.partition(",")[0]


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
def test_an_adapter_refuses_x_before_it_computes_and_lets_it_pass_when_it_is_off(prepared: bool, grad: bool) -> None:
    adapter = CRMAAdapter(9, 3, 2)
    with torch.set_grad_enabled(grad):
        if prepared:
            prepare_adapters([adapter])
        for dtype in REFUSED:
            with pytest.raises(DtypeError, match=f"x: got dtype {dtype}"):
                adapter(tensor(dtype, 4, 9))
        with pytest.raises(DtypeError, match="x: got dtype ndarray"):
            adapter(np.zeros((4, 9)))
        for taken in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            assert adapter(torch.ones(4, 9, dtype=taken)).dtype == taken
        adapter.enabled = False
        for dtype in REFUSED:
            x = tensor(dtype, 4, 9)
            assert adapter(x) is x
