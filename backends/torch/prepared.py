"""What a backbone computes for all its layers at once, and which calls of an adapter it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from backends.torch.bypass import NO_BACKWARD_PASS, backward_pass
from reference.errors import BackendError


@dataclass(frozen=True)
class Prepared:
    """M, alpha, and for inference A and C (see ``add_mixed``) of one layer.

    They serve the forward pass of the model that they were made in, and, where a graph was made, the recomputation of
    its blocks by a checkpoint that is not reentrant: that must find the same tensors as the first time. ``made_of`` are
    the parameters of all layers, stacked, of which this is ``layer``: a copy.
    """

    mixing: Tensor
    strength: Tensor
    mixed: tuple[Tensor, Tensor] | None
    made_of: Sequence[Tensor]
    layer: int
    with_graph: bool
    traced: bool
    thread: int | None  # that made it; None where traced, and without a graph
    in_forward_pass: bool = True

    def serves(self, parameters: Sequence[Any]) -> bool:
        """Whether it serves the present call of an adapter with ``parameters``. One rule a line.

        Raises: BackendError if the call is a recomputation and the parameters hold other values now.
        """
        if self.traced != torch.compiler.is_compiling():
            return False  # the tensors of a graph that torch.compile traces exist in it alone
        if self.mixing.device != parameters[0].device:
            return False  # accelerate brings offloaded parameters from the meta device for the call of an adapter alone
        if torch.is_grad_enabled() and not self.with_graph:
            return False  # they would cut the parameters off from their gradients
        if self.in_forward_pass and self.thread is not None and self.thread != get_ident():
            return False  # a graph can be followed back only once, so each thread makes its own
        if not self.in_forward_pass and backward_pass() == NO_BACKWARD_PASS:
            return False  # a block or an adapter that is called by itself, rather than recomputed
        if not self.in_forward_pass:
            self.require_unchanged(parameters)  # a recomputation must find what the forward pass computed with
        return True

    def after_the_forward_pass(self) -> Prepared | None:
        """What is left of it for a recomputation. A version cannot tell that a parameter has changed; values can."""
        if not self.with_graph or self.traced or torch._C._are_functorch_transforms_active():
            return None
        made_of = [stacked.detach() for stacked in self.made_of]
        return replace(self, made_of=made_of, in_forward_pass=False)

    def require_unchanged(self, parameters: Sequence[Any]) -> None:
        """Raises: BackendError if ``parameters`` hold other values than those that this was made of."""
        same = []
        for made_of, present in zip(self.made_of, parameters, strict=True):
            whole = present.full_tensor() if hasattr(present, "full_tensor") else present
            same.append((_bits(made_of[self.layer]) == _bits(whole.to(made_of.device))).all())
        if not bool(torch.stack(same).all()):  # one wait for the device
            raise BackendError(
                "parameters of an adapter",
                got="other values in the recomputation by a checkpoint than in the forward pass",
                allowed="the same values until the backward pass has ended",
                remedy="call backward() before the optimizer's step, and before loading or swapping parameters",
            )


class Promise:
    """That the parameters of an adapter do not change inside a block: what they were at its beginning."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.made_of: list[tuple[str, Any, int, Tensor]] = [
            (name, one, one._version, one.detach().clone()) for name, one in parameters.items()
        ]

    def seems_kept(self, parameters: Mapping[str, Any]) -> bool:
        """As far as objects and versions tell: an optimizer of fused kernels and an edit of ``.data`` leave both."""
        for name, before, version, _ in self.made_of:  # in each forward pass: all() would take twice as long
            if before._version != version or parameters.get(name) is not before:
                return False
        return True

    def require_kept(self, parameters: Mapping[str, Any]) -> None:
        """Raises: BackendError where :meth:`seems_kept` is false, and for other values."""
        if not self.seems_kept(parameters) or not all(
            torch.equal(_bits(before), _bits(value)) for _, before, _, value in self.made_of
        ):
            raise BackendError(
                "parameters of an adapter",
                got="a change inside the block of prepare()",
                allowed="the same parameters and values up to its end; what was computed after the change may be wrong",
                remedy="train, load and swap outside of the block",
            )


def _bits(values: Tensor) -> Tensor:
    """NaN is the same as before where its bits are."""
    return values.detach().reshape(-1).view(torch.uint8)
