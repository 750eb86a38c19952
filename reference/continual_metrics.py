"""Metrics of continual learning, from the matrix of holdout losses.

Source: paper section 6.1.3. Clauses: CL-1..CL-4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import ConfigError, NonFiniteError, ShapeError

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

    Raises: ShapeError if it is not square; NonFiniteError if an entry with task <= phase is NaN or infinite.
    Clauses: CL-1, CL-2, CL-3.

    >>> float(round(continual_metrics([[2.0, np.nan], [2.2, 1.0]]).drift, 12))
    0.1
    """
    losses = np.asarray(holdout, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[0] != losses.shape[1] or losses.shape[0] == 0:
        raise ShapeError(
            "holdout", got=losses.shape, allowed="(T, T) with T >= 1", remedy="one row per phase, one column per task"
        )
    seen = np.tri(len(losses), dtype=bool)
    if not np.isfinite(losses[seen]).all():
        raise NonFiniteError(
            "holdout",
            got="a non-finite loss of a task already seen",
            allowed="finite losses for every task <= phase",
            remedy="finish the run, or look at the phase that diverged",
        )
    after_own_phase, final = np.diag(losses), losses[-1]
    change = (final - after_own_phase)[:-1]
    relative = change / after_own_phase[:-1]
    return ContinualMetrics(
        drift_per_task=relative,
        drift=float(relative.mean()) if relative.size else 0.0,
        final_holdout=float(final.mean()),
        backward_transfer=float(change.mean()) if change.size else 0.0,
    )


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
