"""Families of float32 logits for measuring double stochasticity: random ones, and ones that make Sinkhorn fail.

Each family is a function ``(rng, count, n) -> (count, n, n)``, float32, with ``|S| <= 1e38`` (the domain of SINK-5).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Family = Callable[[np.random.Generator, int, int], Array]

LARGEST_LOGIT = 1e38  # S - max(S) must stay finite in float32
NORMAL_DEVIATIONS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 1000.0)


def normal(deviation: float) -> Family:
    return lambda rng, count, n: deviation * rng.standard_normal((count, n, n))


def _permutations(rng: np.random.Generator, count: int, n: int) -> NDArray[np.bool_]:
    return np.eye(n, dtype=bool)[rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)]


def _shuffled(rng: np.random.Generator, logits: Array) -> Array:
    """Rows and columns in random order, and half of the matrices transposed."""
    count, n, _ = logits.shape
    rows, columns = (rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1) for _ in range(2))
    mixed = logits[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return np.where(rng.random((count, 1, 1)) < 0.5, mixed, mixed.swapaxes(1, 2))


def _scale(rng: np.random.Generator, count: int, low: float, high: float) -> Array:
    """Log-uniform in [10^low, 10^high], shape (count, 1, 1)."""
    return 10.0 ** rng.uniform(low, high, (count, 1, 1))


def _multiples_of_identity(rng: np.random.Generator, count: int, n: int) -> Array:
    return rng.choice([-1.0, 1.0], (count, 1, 1)) * _scale(rng, count, 0, 5) * np.eye(n)


def _noisy_permutations(rng: np.random.Generator, count: int, n: int) -> Array:
    return 30.0 * _permutations(rng, count, n) + rng.standard_normal((count, n, n))


def _off_a_permutation(rng: np.random.Generator, count: int, n: int) -> Array:
    noise = rng.standard_normal((count, n, n))
    return np.where(_permutations(rng, count, n), noise, -1e4 + noise)


def _two_permutations(rng: np.random.Generator, count: int, n: int) -> Array:
    support = _permutations(rng, count, n) | _permutations(rng, count, n)
    return np.where(support, rng.standard_normal((count, n, n)), -1e4)


def _triangular(rng: np.random.Generator, count: int, n: int) -> Array:
    return _shuffled(rng, np.where(np.tri(n, dtype=bool), 0.0, -_scale(rng, count, 1, 4)))


def _block_triangular(rng: np.random.Generator, count: int, n: int) -> Array:
    first_block = np.arange(n) < (n + 1) // 2
    forbidden = first_block[:, None] & ~first_block[None, :]
    return _shuffled(rng, np.where(forbidden, -_scale(rng, count, 1, 4), rng.standard_normal((count, n, n))))


def _no_matching(rng: np.random.Generator, count: int, n: int) -> Array:
    """Two rows whose only live entry lies in the same column, so that no permutation fits the support."""
    logits = rng.standard_normal((count, n, n))
    logits[:, : min(2, n), 1:] = -_scale(rng, count, 1.7, 4)
    return _shuffled(rng, logits)


def _rank_one(rng: np.random.Generator, count: int, n: int) -> Array:
    scale = _scale(rng, count, 0, 4)
    return scale * (rng.uniform(-1, 1, (count, n, 1)) + rng.uniform(-1, 1, (count, 1, n)))


def _constant(rng: np.random.Generator, count: int, n: int) -> Array:
    return rng.choice([-1.0, 1.0], (count, 1, 1)) * _scale(rng, count, 0, 37) * np.ones((n, n))


def _extreme_scales(rng: np.random.Generator, count: int, n: int) -> Array:
    return np.clip(_scale(rng, count, 3, 37) * rng.standard_normal((count, n, n)), -LARGEST_LOGIT, LARGEST_LOGIT)


def _lattice(rng: np.random.Generator, count: int, n: int) -> Array:
    """Small integers times a power of two: many exact ties."""
    return 2.0 ** rng.integers(-4, 120, (count, 1, 1)) * rng.integers(-3, 4, (count, n, n))


RANDOM: dict[str, Family] = {f"normal, sd {deviation:g}": normal(deviation) for deviation in NORMAL_DEVIATIONS}
ADVERSARIAL: dict[str, Family] = {
    "k times identity": _multiples_of_identity,
    "noisy permutation": _noisy_permutations,
    "-1e4 off a permutation": _off_a_permutation,
    "-1e4 off two permutations": _two_permutations,
    "triangular": _triangular,
    "block-triangular": _block_triangular,
    "support without a matching": _no_matching,
    "rank one": _rank_one,
    "constant": _constant,
    "extreme scales, to 1e37": _extreme_scales,
    "lattice 2^k * integers": _lattice,
}


def draw(family: Family, rng: np.random.Generator, count: int, n: int) -> NDArray[np.float32]:
    """``count`` matrices of logits of one family, shape (count, n, n), float32."""
    return family(rng, count, n).astype(np.float32)
