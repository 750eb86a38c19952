"""Intervals by resampling texts and seeds, for figures that are functions of losses summed over texts.

Source: percentile bootstrap, Efron 1979; resampling within and over clusters, Davison and Hinkley 1997, section 3.8.
Clause: CL-13.
"""

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import ConfigError, ShapeError
from reference.seed_summary import as_numbers, non_finite

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
_MOST_TEXTS = 50_000  # of all seeds and tasks: 10,000 resamples of them are 1 GB


class Interval(NamedTuple):
    """The figure itself, and the bounds between which it lies in so many of all resamples."""

    estimate: float
    low: float
    high: float


def paired_bootstrap(
    seeds: Sequence[Sequence[ArrayLike]],
    statistic: Statistic,
    *,
    resamples: SupportsIndex = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean over seeds of ``statistic``, with its percentile interval over seeds and, within them, over texts.

    A resample draws as many seeds as there are, with replacement, and for each of them, task by task, as many texts as
    there are, with replacement. All columns of a text are drawn together, so what is compared stays paired. With one
    seed the interval is over texts alone: it says how sure this run's figure is, and nothing of other runs.

    Args:
        seeds: per seed, per task: (texts, columns), such as the loss of a text after its own phase, after the last
            one, and the number of its answer tokens. The texts of two tasks or seeds may differ in number.
        statistic: of the columns' sums, (resamples, tasks, columns), gives the figure of each, (resamples,).
        seed: of the generator that draws.

    **With few seeds the interval is too narrow**: of n equal seeds' variance it sees (n - 1) / n, and it takes the
    normal distribution's tails, not Student's. At n = 6 a 95% interval covers 87%.

    Raises: ShapeError, NonFiniteError, ConfigError. Clause: CL-13.

    >>> one, two = np.array([[1.0, 1.0]]), np.array([[3.0, 1.0]])  # two seeds with a single text each: losses 1 and 3
    >>> paired_bootstrap([[one], [two]], lambda sums: sums[:, 0, 0] / sums[:, 0, 1])
    Interval(estimate=2.0, low=1.0, high=3.0)
    """
    tables = _checked(seeds)
    count = _count(resamples)
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ConfigError(
            "confidence", got=repr(confidence), allowed="a number between 0 and 1", remedy="0.95 for 95 percent"
        )
    sizes = tuple(tuple(len(table) for table in tasks) for tasks in tables)
    texts, chosen, which = _draws(sizes, count, seed)
    estimate = float(
        np.mean([_figures(statistic, _sums(tasks, [np.ones((1, len(t))) for t in tasks])) for tasks in tables])
    )
    drawn = np.stack([_figures(statistic, _sums(tasks, times)) for tasks, times in zip(tables, texts, strict=True)])
    means = drawn[chosen, which].mean(axis=0)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _checked(seeds: Sequence[Sequence[ArrayLike]]) -> list[list[Array]]:
    tables = [
        [as_numbers(table, f"seed {i}, task {j}") for j, table in enumerate(tasks)] for i, tasks in enumerate(seeds)
    ]
    shapes = {(len(tasks), *(table.shape[1:] for table in tasks)) for tasks in tables}
    if (
        len(shapes) != 1
        or not tables[0]
        or any(table.ndim != 2 or not table.size for tasks in tables for table in tasks)
    ):
        raise ShapeError(
            "seeds",
            got=f"{len(tables)} seeds, of shapes {[[table.shape for table in tasks] for tasks in tables][:2]}",
            allowed="at least one seed, each with the same tasks, each task (texts, columns) with at least one text",
            remedy="compare conditions over the seeds that all have finished",
        )
    if sum(len(table) for tasks in tables for table in tasks) > _MOST_TEXTS:
        raise ShapeError(
            "seeds",
            got=f"more than {_MOST_TEXTS:,} texts",
            allowed="as many as can be drawn in memory",
            remedy="leave out some seeds, and say so",
        )
    if not all(np.isfinite(table).all() for tasks in tables for table in tasks):
        raise non_finite("seeds", "losses and counts of every text")
    return tables


@lru_cache(maxsize=2)
def _draws(
    sizes: tuple[tuple[int, ...], ...], count: int, seed: int
) -> tuple[list[list[NDArray[np.uint16]]], Any, Any]:
    """How often each text is drawn, per seed and task (count, texts); and the seeds of each resample, with the resample
    of their texts: a seed that is drawn twice comes with other texts each time. Figures of equal sizes share them."""
    rng = np.random.default_rng(seed)
    texts = [
        [rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.uint16) for n in of_seed] for of_seed in sizes
    ]
    shape = (len(sizes), count)
    if len(sizes) == 1:
        return texts, np.zeros(shape, int), np.arange(count)[None]
    return texts, rng.integers(len(sizes), size=shape), rng.permuted(np.broadcast_to(np.arange(count), shape), axis=1)


def _sums(tasks: Sequence[Array], times: Sequence[NDArray[Any]]) -> Array:
    """(resamples, tasks, columns)."""
    return np.stack([drawn @ table for drawn, table in zip(times, tasks, strict=True)], axis=1)


def _figures(statistic: Statistic, sums: Array) -> Array:
    figures = as_numbers(statistic(sums), "statistic")
    if figures.shape != sums.shape[:1]:
        raise ShapeError(
            "statistic", got=figures.shape, allowed=f"({len(sums)},)", remedy="return one figure for each resample"
        )
    if not np.isfinite(figures).all():
        raise non_finite("statistic", "figures of every resample")
    return figures


def _count(resamples: SupportsIndex) -> int:
    try:
        count = -1 if isinstance(resamples, bool) else operator.index(resamples)
    except TypeError:
        count = -1
    if not 100 <= count <= 10**7:
        raise ConfigError(
            "resamples", got=repr(resamples), allowed="a whole number from 100 to 10^7", remedy="10_000 for two digits"
        )
    return count
