"""Which version of a shared state each earlier task answers with, so that no phase makes its answers worse.

Clauses: CL-11, CL-12.
"""

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import ConfigError, ShapeError
from reference.seed_summary import as_numbers, non_finite


def ratchet_moves(answering: ArrayLike, shared: ArrayLike) -> NDArray[np.bool_]:
    """(T,): whether each earlier task moves to the new version of the shared state, ``shared <= answering``.

    Args:
        answering: (T,), losses of the earlier tasks on their decision splits, with the version each answers with now.
        shared: (T,), losses on the same texts with the version that the new phase has trained.

    Raises: ShapeError if they are not two vectors of one length; NonFiniteError. Clause: CL-11.

    >>> ratchet_moves([1.0, 1.0, 2.0], [0.9, 1.0, 2.1]).tolist()
    [True, True, False]
    """
    before, after = _pair(answering, shared, ("answering", "shared"))
    return after <= before


def broken_promises(own: ArrayLike, now: ArrayLike, after: ArrayLike, promise: float) -> NDArray[np.bool_]:
    """(T,): whether a phase leaves a task worse than promised, ``after > max(own (1 + promise), now)``.

    Args:
        own: (T,), losses on the reported splits after each task's own phase. now: before the new phase.
        after: behind the new phase.
        promise: the most that a task may lose, as a fraction of ``own`` (0.01 is 1%).

    Raises: ShapeError; NonFiniteError; ConfigError if a loss of ``own`` is not > 0, or ``promise`` no number
    >= 0. Clause: CL-12.

    >>> broken_promises([1.0, 1.0, 1.0], [1.0, 1.03, 1.0], [1.009, 1.02, 1.02], promise=0.01).tolist()
    [False, False, True]
    """
    if isinstance(promise, bool) or not isinstance(promise, Real) or not 0 <= promise < np.inf:
        raise ConfigError(
            "promise", got=repr(promise), allowed="a finite number >= 0", remedy="0.01 lets a task lose 1%"
        )
    first, before = _pair(own, now, ("own", "now"))
    _, behind = _pair(own, after, ("own", "after"))
    if not (first > 0).all():
        raise ConfigError(
            "own", got=first.min(), allowed="losses > 0", remedy="look at the reported split of that task"
        )
    return behind > np.maximum(first * (1 + promise), before)


def _pair(first: ArrayLike, second: ArrayLike, names: tuple[str, str]) -> tuple[NDArray[np.float64], ...]:
    losses = as_numbers(first, names[0]), as_numbers(second, names[1])
    if losses[0].ndim != 1 or losses[0].shape != losses[1].shape:
        raise ShapeError(
            names[1],
            got=f"{losses[1].shape}, and {losses[0].shape} in {names[0]}",
            allowed="two vectors (T,) of the same T",
            remedy="one loss a task in both, in the same order",
        )
    for name, values in zip(names, losses, strict=True):
        if not np.isfinite(values).all():
            raise non_finite(name, "a loss of every task")
    return losses
