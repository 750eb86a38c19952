"""How torch differentiates the functions of the adapter that have a gradient in closed form. Clause: GRAD-7.

Reverse mode, of any order, goes through their ``backward``, which is made of operations that autograd knows. Forward
mode (``torch.func.jvp``, ``jacfwd``, ``hessian``, dual numbers) differentiates the operations of their ``forward``: a
rule of its own (``Function.jvp``) would keep torch.compile from tracing them.

torch's reentrant checkpoints make no graph of a gradient, whatever module is inside: take those that are not reentrant.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def outputs_of(function: type[Function], *inputs: Any) -> Any:
    """What ``function.apply`` returns; in forward mode, what its plain operations do."""
    if in_forward_mode():
        return getattr(function, "in_forward_mode", function.forward)(*inputs)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    # Function.apply looks up the signature of forward in each call, for default values: 25 microseconds.
    return super(Function, function).apply(*inputs)  # type: ignore[misc]  # which its stubs lack


def in_forward_mode() -> bool:
    """Whether tangents may travel with the values: inside ``torch.func.jvp`` and its kind, or ``dual_level``."""
    return forward_ad._current_level >= 0


def in_transform() -> bool:
    """Whether ``torch.func`` or forward mode asks for operations that they know: they do not see into a kernel."""
    return in_forward_mode() or (not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active())


def pulled_back(
    function: Callable[..., tuple[Tensor | None, ...]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of ``inputs`` through the plain ``function``, themselves open to any further derivative."""
    pulled: tuple[Tensor, ...] = torch.func.vjp(function, *inputs)[1](tuple(cotangents))
    return pulled
