"""Tests of paired results over seeds or over questions, and an interval for a fraction, by ``scipy.stats``.

SciPy comes with the extras 'finetune' and 'bench'; the mathematics of CRMA goes without it.
Source: the classical tests cited below; Wilson and McNemar as in the paper's Table 8. Clause: CL-9.
"""

import operator
from numbers import Real
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.errors import ConfigError, MissingPackageError, ShapeError
from reference.seed_summary import checked_values, seed_summary

Array = NDArray[np.float64]
MOST_PAIRS = 20  # 2^20 sums are 8 MB


class PairedTTest(NamedTuple):
    """Of the n differences a - b: mean, sample standard deviation, t with n - 1 degrees of freedom, two-sided p."""

    mean_difference: float
    sd: float
    t: float
    p: float
    n: int


def paired_t_test(a: ArrayLike, b: ArrayLike) -> PairedTTest:
    """``t = mean(a - b) / (SD(a - b) / sqrt(n))`` and ``p = P(|T| >= |t|)``, T Student's with n - 1 degrees of freedom.

    It takes the differences to be normal, which a few seeds cannot show. With SD = 0, t is infinite and p 0, unless
    all differences are 0: then t = 0 and p = 1.

    Args:
        a, b: (n,), n >= 2, results of two conditions; entry i of both comes from the same seed and data.

    Raises: ShapeError, NonFiniteError. Source: Student 1908. Clause: CL-9.

    >>> paired_t_test([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])[:3]  # differences 1, 2, 3: t = 2 sqrt(3), p = 1 - sqrt(6/7)
    (2.0, 1.0, 3.4641016151377544)
    """
    differences = _differences(a, b)
    summary = seed_summary(differences)
    mean, sd, n = summary.mean, summary.sd, summary.n
    assert sd is not None  # of two values or more
    limit = np.copysign(np.inf, mean) if mean else 0.0
    t = mean / sd * n**0.5 if sd > 0 else limit
    return PairedTTest(mean, sd, float(t), float(2 * _stats().t.sf(abs(t), n - 1)), n)


def sign_flip_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of the exact sign-flip (randomization) test: the fraction of all 2^n ways to choose the signs of the
    differences a - b whose sum is, in absolute value, at least the observed one.

    It assumes only that each difference would be as likely with the other sign. No p is below 2 / 2^n, **so with 3
    seeds p cannot go below 0.25, however large the effect**; 6 seeds are the fewest that can reach 0.05. Sums that
    differ by no more than rounding of a and b count as equal, which can only raise p.

    Args:
        a, b: (n,), 2 <= n <= 20, paired as in ``paired_t_test``.

    Raises: ShapeError, NonFiniteError. Source: Fisher 1935, section 21. Clause: CL-9.

    >>> sign_flip_test([1.2716, 1.2912, 1.3036], [1.2530, 1.2657, 1.2705])  # FROZEN and MODULAR, the paper's Table 7
    0.25
    """
    differences = _differences(a, b, most=MOST_PAIRS)
    sums = np.zeros(1)  # not by scipy's permutation_test, whose tolerance shrinks with the sum that it compares
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    magnitude = sum(float(np.abs(checked_values(values, "a, b")).sum()) for values in (a, b))
    rounding = 8 * len(differences) * np.finfo(np.float64).eps * magnitude
    return float((np.abs(sums) >= abs(sums[0]) - rounding).mean())


def wilson_interval(successes: SupportsIndex, n: SupportsIndex, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a fraction ``f = successes / n``, as (low, high) within [0, 1].

    ``(f + z^2 / 2n -+ z sqrt(f (1 - f) / n + z^2 / 4n^2)) / (1 + z^2 / n)``, z the (1 + confidence) / 2 quantile of the
    standard normal distribution.

    Raises: ConfigError unless 0 <= successes <= n, n >= 1 are whole numbers and 0 < confidence < 1.
    Source: Wilson 1927; the paper's Table 8. Clause: CL-9.

    >>> [round(bound, 3) for bound in wilson_interval(98, 100)]
    [0.93, 0.994]
    """
    total, hits = _count(n, "n"), _count(successes, "successes")
    if total < 1 or hits > total:
        raise ConfigError(
            "successes", got=f"{hits} of {total}", allowed="0 <= successes <= n, n >= 1", remedy="count the questions"
        )
    if isinstance(confidence, bool) or not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise ConfigError(
            "confidence", got=repr(confidence), allowed="a number between 0 and 1", remedy="0.95 for 95 percent"
        )
    low, high = _stats().binomtest(hits, total).proportion_ci(float(confidence), method="wilson")
    return float(low), float(high)


def mcnemar_exact(only_first: SupportsIndex, only_second: SupportsIndex) -> float:
    """Two-sided p of McNemar's exact test: ``min(1, 2 P(X <= min(b, c)))``, X binomial (b + c trials, chance 1/2).

    Args:
        only_first: b, questions that only the first of two answerers got right.
        only_second: c, questions that only the second got right. Where both were right or both wrong says nothing.

    Returns: p; 1 where b = c, b = c = 0 included.

    Raises: ConfigError unless both are whole numbers >= 0. Source: McNemar 1947; the paper's Table 8. Clause: CL-9.

    >>> mcnemar_exact(5, 0)  # 2 / 2^5
    0.0625
    """
    counts = _count(only_first, "only_first"), _count(only_second, "only_second")
    trials = sum(counts)
    return float(_stats().binomtest(min(counts), trials, 0.5).pvalue) if trials else 1.0


def _stats() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "tests of paired results",
            got="no package named scipy",
            allowed="an installation with the extra 'finetune'",
            remedy="pip install 'crma[finetune]'",
        ) from error
    return stats


def _differences(a: ArrayLike, b: ArrayLike, most: int | None = None) -> Array:
    first, second = checked_values(a, "a"), checked_values(b, "b")
    if first.shape != second.shape or first.size < 2 or (most and first.size > most):
        raise ShapeError(
            "a",
            got=f"{first.shape}, and {second.shape} in b",
            allowed="two vectors (n,) of the same n >= 2" + (f", n <= {most}" if most else ""),
            remedy="one result per seed in both, in the same order; more seeds if there is only one",
        )
    return first - second


def _count(value: SupportsIndex, field: str) -> int:
    try:
        count = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = -1
    if count < 0:
        raise ConfigError(field, got=repr(value), allowed="a whole number >= 0", remedy="pass a count")
    return count
