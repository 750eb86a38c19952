"""How sure the figures of a run are: intervals over held-out texts and seeds, and what a draw alone changes.

Clause: CL-13.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from backends.finetune.runs.results import RunResults
from reference import Interval, paired_bootstrap

Array = NDArray[np.float64]
RESAMPLES = 2000
DRAWS = ("frozen-draw-2", "frozen-draw-3")
OWN, FINAL, TOKENS, FROZEN = range(4)


def _drift(sums: Array) -> Array:
    return (sums[:, :-1, FINAL] / sums[:, :-1, OWN] - 1).mean(axis=1)


def _advantage(sums: Array) -> Array:
    own, frozen = ((sums[:, :, column] / sums[:, :, TOKENS]).mean(axis=1) for column in (FINAL, FROZEN))
    return (frozen - own) / frozen


FIGURES: dict[str, Callable[[Array], Array]] = {
    "drift": _drift,
    "advantage": _advantage,
    "later": lambda sums: _advantage(sums[:, 1:]),
}


def interval(
    results: RunResults,
    figure: str,
    condition: str,
    seeds: Sequence[int],
    *,
    against: str = "frozen",
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Of one of FIGURES, in percent, over the finished ``seeds``; an advantage is over ``against`` of the same seed.

    "later" is the advantage over all tasks but the first. None where no seed has finished, the file of one has no
    losses of texts, as those of earlier versions, or there is a single task.
    """
    tables = []
    for seed in seeds if len(results.tasks) > 1 else ():
        other_name = condition if figure == "drift" else against
        if any(results.metrics(name, seed) is None for name in (condition, other_name)):
            continue  # not finished
        own, other = results.text_losses(condition, seed), results.text_losses(other_name, seed)
        if own is None or other is None:
            return None  # an interval over some of the seeds would stand below the mean of all
        tables.append([np.column_stack([mine, theirs[:, FINAL]]) for mine, theirs in zip(own, other, strict=True)])
    if not tables:
        return None
    found = paired_bootstrap(tables, FIGURES[figure], resamples=resamples)
    return Interval(*(100 * value for value in found))


def noise_floor(results: RunResults, seeds: Sequence[int]) -> float | None:
    """The largest advantage over FROZEN, or loss to it, of another draw of LoRA's start in any seed, in percent."""
    found = [results.advantage(draw, seed) for draw in DRAWS for seed in seeds]
    return max((100 * abs(value) for value in found if value is not None), default=None)
