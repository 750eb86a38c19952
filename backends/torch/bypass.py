"""Which calls of an adapter ``CRMABackbone.disabled()`` bypasses, and what a checkpoint recomputes of them.

A ``with`` block holds for the context that entered it: its thread, its asyncio task. So other threads answer with CRMA
meanwhile, blocks may overlap, and they may end in any order and in any thread. A backward pass runs in threads of its
own: there no block counts that was entered outside it, and what a reentrant checkpoint recomputes is bypassed if it was
bypassed the first time, which the checkpoint remembers.
"""

import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.autograd.function import FunctionCtx

NO_BACKWARD_PASS = -1


def backward_pass() -> int:
    """The number of the backward pass around this call, or NO_BACKWARD_PASS. torch.utils.checkpoint asks it too."""
    return torch._C._current_graph_task_id()


class Block:
    """One ``with backbone.disabled():``, as it was entered."""

    def __init__(self) -> None:
        self.backward_pass = backward_pass()
        _entered.set(_entered.get() | {self})

    def leave(self) -> None:
        """In another context than the one that entered it, this finds nothing; the adapters have dropped it anyway."""
        _entered.set(_entered.get() - {self})


_entered: ContextVar[frozenset[Block]] = ContextVar("blocks entered here", default=frozenset())


def hold_here(blocks: frozenset[Block]) -> bool:
    """Whether one of ``blocks``, none of which has ended, was entered in this context and this backward pass."""
    return bool(blocks) and (_untraced if torch.compiler.is_compiling() else _hold_here)(blocks)


def _hold_here(blocks: frozenset[Block]) -> bool:
    now = backward_pass()
    return any(block.backward_pass == now for block in blocks & _entered.get())


#: torch.compile knows no contexts, so within a block it must ask anew in each call: a break of the graph.
_untraced = torch._disable_dynamo(_hold_here)  # type: ignore[attr-defined]


class Remembered(NamedTuple):
    """Whether a call was bypassed, and if not, what was prepared for it: a Prepared or None."""

    bypassed: bool
    prepared: Any


def remember(adapter: object, remembered: Remembered) -> None:
    """Let the reentrant checkpoints around this call know what it did, for the time when they recompute it."""
    for context in _contexts():
        if not hasattr(context, "crma_calls"):
            context.crma_calls = {}
        context.crma_calls[adapter] = remembered


def recalled(adapter: object) -> Remembered | None:
    """What the reentrant checkpoint that recomputes this call remembers; None if there is none."""
    if torch.compiler.is_compiling() or backward_pass() == NO_BACKWARD_PASS:
        return None
    for context in _contexts():
        known: Remembered | None = getattr(context, "crma_calls", {}).get(adapter)
        if known is not None:
            return known
    return None


def _contexts() -> Iterator[Any]:
    """The ``ctx`` of each torch.autograd.Function on the stack, innermost first: a reentrant checkpoint is one of them,
    and has the same ``ctx`` in its forward and in its backward.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("forward", "backward") and code.co_argcount and code.co_varnames[0] != "self":
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, FunctionCtx):
                yield first
        frame = frame.f_back  # type: ignore[assignment]
