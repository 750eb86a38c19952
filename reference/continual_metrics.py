"""Metrics of continual learning, from the matrices of holdout losses and of exact matches.

Source: paper sections 6.1.3 and 6.2, and Lopez-Paz and Ranzato 2017. Clauses: CL-1..CL-4, CL-6, CL-7.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import ConfigError, ShapeError
from reference.seed_summary import as_numbers, non_finite

Array = NDArray[np.float64]


class ContinualMetrics(NamedTuple):
    """What one run of a sequence of T tasks kept. Losses in nats per answer token, ``drift`` as fractions (0.01 = 1%).

    Attributes:
        drift_per_task: (T - 1,), relative change of each prior task's loss since its own phase; positive = forgetting.
        drift: their mean; 0 for a single task.
        final_holdout: mean over tasks of the loss after the last phase.
        backward_transfer: mean over prior tasks of (final loss - loss after its own phase), in nats; negative = better.
    """

    drift_per_task: Array
    drift: float
    final_holdout: float
    backward_transfer: float


def continual_metrics(holdout: ArrayLike) -> ContinualMetrics:
    """Metrics of the matrix ``holdout[phase, task]``, shape (T, T), of mean holdout losses; entries with task > phase
    (tasks not yet seen) are ignored and may be NaN.

    ``drift_j = (holdout[T-1, j] - holdout[j, j]) / holdout[j, j]``.

    Raises: ShapeError if it is not square; NonFiniteError if an entry with task <= phase is NaN or infinite;
    ConfigError if a prior task's loss after its own phase is not > 0, as no change is relative to it.
    Clauses: CL-1, CL-2, CL-3.

    >>> float(round(continual_metrics([[2.0, np.nan], [2.2, 1.0]]).drift, 12))
    0.1
    """
    own, final = _own_and_final(holdout, "holdout")
    if not (own[:-1] > 0).all():
        raise ConfigError(
            "holdout",
            got=f"a loss of {own[:-1].min()} after a task's own phase",
            allowed="losses > 0, in nats per answer token",
            remedy="look at the holdout set of that task",
        )
    change = (final - own)[:-1]
    relative = change / own[:-1]
    return ContinualMetrics(
        drift_per_task=relative,
        drift=float(relative.mean()) if relative.size else 0.0,
        final_holdout=float(final.mean()),
        backward_transfer=float(change.mean()) if change.size else 0.0,
    )


def exact_match_transfer(exact_match: ArrayLike) -> float:
    """Mean over prior tasks of ``E[T-1, j] - E[j, j]``, E the exact match; positive = better, 0 if T = 1.

    E = ``exact_match[phase, task]``, shape (T, T): the fraction of the task's canaries recalled after the phase;
    entries with task > phase are ignored and may be NaN.

    Raises: ShapeError if it is not square; NonFiniteError if an entry with task <= phase is NaN or infinite;
    ConfigError if one that counts lies outside [0, 1]. Source: paper section 6.2. Clause: CL-7.

    >>> round(exact_match_transfer([[0.74, np.nan], [0.62, 0.7]]), 12)  # 37, then 31 of 50 canaries
    -0.12
    """
    own, final = _own_and_final(exact_match, "exact_match")
    lowest, highest = min(own.min(), final.min()), max(own.max(), final.max())
    if lowest < 0 or highest > 1:
        raise ConfigError(
            "exact_match",
            got=f"values from {lowest} to {highest}",
            allowed="fractions in [0, 1]",
            remedy="divide counts by the number of canaries, percentages by 100",
        )
    return float((final - own)[:-1].mean()) if len(own) > 1 else 0.0


def forward_transfer(before: ArrayLike, base: ArrayLike) -> float:
    """Mean over tasks j >= 1 of ``before[j] - base[j]``, in nats; negative = the earlier tasks helped, 0 if T = 1.

    Args:
        before: (T,), holdout loss of task j just before its own phase.
        base: (T,), holdout loss of task j on the bare base model. Entry 0 of both is ignored and may be NaN.

    Raises: ShapeError if they are not two vectors of one length T >= 1; NonFiniteError.
    Source: Lopez-Paz and Ranzato 2017, section 2, with losses in the place of accuracies. Clause: CL-6.

    >>> round(forward_transfer([2.0, 1.9, 3.3], [2.0, 2.0, 3.0]), 12)
    0.1
    """
    first, second = as_numbers(before, "before"), as_numbers(base, "base")
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ShapeError(
            "before",
            got=f"{first.shape}, and {second.shape} in base",
            allowed="two vectors (T,) of the same T >= 1",
            remedy="one loss per task in both, in the order of the phases",
        )
    for name, losses in (("before", first), ("base", second)):
        if not np.isfinite(losses[1:]).all():
            raise non_finite(name, "losses of every task after the first")
    return float((first - second)[1:].mean()) if first.size > 1 else 0.0


def advantage(frozen_final_holdout: float, final_holdout: float) -> float:
    """``(FROZEN - condition) / FROZEN`` of the final mean holdout losses; positive = better than FROZEN. Clause: CL-4.

    Raises: ConfigError if the loss of FROZEN is not a positive number.

    >>> round(advantage(1.2716, 1.2530), 4)  # the paper's Table 7, seed 0
    0.0146
    """
    if not frozen_final_holdout > 0:
        raise ConfigError(
            "frozen_final_holdout",
            got=frozen_final_holdout,
            allowed="a mean loss > 0, in nats per answer token",
            remedy="look at the holdout losses of FROZEN",
        )
    return (frozen_final_holdout - final_holdout) / frozen_final_holdout


def _own_and_final(matrix: ArrayLike, field: str) -> tuple[Array, Array]:
    """Of a (T, T) matrix by phase and task: each task's value after its own phase, and after the last one."""
    values = as_numbers(matrix, field)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] == 0:
        raise ShapeError(
            field, got=values.shape, allowed="(T, T) with T >= 1", remedy="one row per phase, one column per task"
        )
    if not np.isfinite(values[np.tri(len(values), dtype=bool)]).all():
        raise non_finite(field, "values for every task <= phase")
    return np.diag(values), values[-1]
