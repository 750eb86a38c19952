"""Inputs: hypothesis chooses sizes, kinds, magnitudes and a seed; a NumPy Generator with this seed draws the numbers.

Every input is float32, so that a float32 port and the float64 reference start from the same values.

Clauses: SINK-1, MIX-1. Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
STREAMS = st.integers(1, 8)
#: n from 1 to 64, and seldom the large ones: what goes wrong there goes wrong in a few examples
SIZES = st.sampled_from((*range(1, 9), *range(1, 9), *range(1, 9), 12, 16, 17, 31, 32, 33, 64))
SEEDS = st.integers(0, 2**32 - 1)
ITERATIONS = st.sampled_from((1, 2, 3, 20))
LEADING = ((), (3,), (2, 3), (1,))
LEADING_WITH_EMPTY = (*LEADING, (0,), (2, 0, 3))

#: kinds of logits whose values are compared with the reference; the magnitude keeps their range below about 1e3
KINDS = ("normal", "near permutation", "triangular", "block", "rank one", "constant")
MODERATE = (0.0, 0.1, 1.0, 5.0, 20.0, 50.0)
#: from this exponent on, an entry of the lattice off its support underflows to 0 in float32 and in float64 alike
LATTICE_EXPONENTS = (8, 12, 20, 30, 60, 90, 120)
EVERY_MAGNITUDE = (*MODERATE, 1e3, 1e5, 1e10, 1e20, 1e37)


@dataclass(frozen=True)
class Logits:
    """Logits S, shape (*leading, n, n); the repr is what it takes to draw them again."""

    kind: str
    magnitude: float
    n: int
    leading: tuple[int, ...]
    seed: int

    @cached_property
    def values(self) -> Array:
        """S, float32."""
        rng = np.random.default_rng(self.seed)
        return _DRAW[self.kind](rng, (*self.leading, self.n, self.n), self.magnitude).astype(np.float32)

    @property
    def condition(self) -> float:
        """How many times one rounding of S - max S is larger than one rounding of M.

        That is the range of S, in general: a rounded log-matrix entry X has an absolute error eps |X|, which is the
        relative error of exp X. On the lattice no such entry is rounded (see :func:`_lattice`).
        """
        if self.kind == "lattice" or self.values.size == 0:
            return 1.0
        logits = self.values.astype(np.float64)
        return max(1.0, float((logits.max(axis=(-2, -1)) - logits.min(axis=(-2, -1))).max()))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    return magnitude * np.clip(rng.standard_normal(shape), -8.0, 8.0)  # clipped: 1e37 must stay finite in float32


def _near_permutation(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    return 4.0 * magnitude * _permutations(rng, shape) + min(magnitude, 0.5) * rng.standard_normal(shape)


def _triangular(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    return rng.standard_normal(shape) - 4.0 * magnitude * np.triu(np.ones(shape), 1)


def _block(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    blocks = rng.integers(0, 2, size=(*shape[:-1], 1))
    return rng.standard_normal(shape) - 4.0 * magnitude * (blocks != np.swapaxes(blocks, -1, -2))


def _rank_one(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    return _normal(rng, (*shape[:-1], 1), magnitude) + _normal(rng, (*shape[:-2], 1, shape[-1]), magnitude)


def _constant(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    return np.broadcast_to(_normal(rng, (*shape[:-2], 1, 1), magnitude), shape)


def _lattice(rng: np.random.Generator, shape: tuple[int, ...], magnitude: float) -> Array:
    """``magnitude``, a power of two, times: integers in [-8, 0] with a permutation of zeros, plus an integer per row.

    Sums and differences are exact in float32 up to 2^124, and every row and column keeps an entry near its maximum, so
    the logarithms of the iteration are never added to a large number. (They would be without the zeros: at 2^30, a
    column whose entries are all far below their rows' maxima depends on logarithms that float32 has rounded away and
    float64 has not. There only the invariants can be asked of a port.)
    """
    integers = rng.integers(-8, 1, size=shape) * (rng.random(shape) < 0.6)
    return magnitude * ((1 - _permutations(rng, shape)) * integers + rng.integers(-8, 9, size=(*shape[:-1], 1)))


def _permutations(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    order = rng.random(shape[:-1]).argsort(axis=-1)
    return np.asarray(order[..., :, None] == np.arange(shape[-1]), dtype=np.float64)


_DRAW: dict[str, Any] = {
    "normal": _normal,
    "near permutation": _near_permutation,
    "triangular": _triangular,
    "block": _block,
    "rank one": _rank_one,
    "constant": _constant,
    "lattice": _lattice,
}


def _logits(kinds: tuple[str, ...], magnitudes: tuple[float, ...], n: Any, leading: Any) -> st.SearchStrategy[Logits]:
    def build(kind: str, magnitude: float, n: int, leading: tuple[int, ...], seed: int) -> Logits:
        return Logits(kind, magnitude, n, leading if n <= 16 else leading[-1:], seed)

    return st.builds(build, st.sampled_from(kinds), st.sampled_from(magnitudes), n, st.sampled_from(leading), SEEDS)


def logits_of(kinds: tuple[str, ...], magnitudes: tuple[float, ...], n: Any) -> st.SearchStrategy[Logits]:
    """Single matrices of some kinds alone."""
    return _logits(kinds, magnitudes, n, ((),))


def lattice_logits(n: Any = SIZES, leading: tuple[tuple[int, ...], ...] = LEADING) -> st.SearchStrategy[Logits]:
    """Logits of any magnitude for which float32 and float64 must agree."""
    return _logits(("lattice",), tuple(2.0**k for k in LATTICE_EXPONENTS), n, leading)


def comparable_logits(
    n: Any = SIZES,
    leading: tuple[tuple[int, ...], ...] = LEADING_WITH_EMPTY,
    magnitudes: tuple[float, ...] = MODERATE,
) -> st.SearchStrategy[Logits]:
    """Logits whose projection a port can be asked to agree with, in float32."""
    return _logits(KINDS, magnitudes, n, leading) | lattice_logits(n, leading)


def every_logits(n: Any = SIZES, leading: tuple[tuple[int, ...], ...] = LEADING) -> st.SearchStrategy[Logits]:
    """Logits of every magnitude up to 1e37, n up to 64: for the invariants."""
    return _logits(KINDS, EVERY_MAGNITUDE, n, leading) | lattice_logits(n, leading)


SEVERAL_STREAMS = comparable_logits(n=st.integers(2, 6), leading=((),), magnitudes=(0.5, 1.0, 5.0))
OPEN_GATES = st.floats(-2.0, 12.0, width=32)
#: logits without a kink or a saturated entry nearby, so that a difference quotient is a derivative
SMOOTH = logits_of(("normal", "rank one"), (0.1, 1.0, 3.0), st.integers(1, 4))


def random_cotangent(shape: tuple[int, ...], seed: int) -> Array:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Adapter:
    """Inputs of one adapter call. ``x``, ``cotangent`` (*leading, d), ``basis`` (n, r, d), ``gate_logit`` ()."""

    logits: Logits
    rank: int
    spare: int
    leading: tuple[int, ...]
    gate: float
    basis_scale: float
    x_scale: float
    orthonormal: bool
    seed: int

    @property
    def hidden_size(self) -> int:
        return self.logits.n * self.rank + self.spare

    @cached_property
    def _drawn(self) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(self.seed)
        n, d = self.logits.n, self.hidden_size
        x = self.x_scale * rng.standard_normal((*self.leading, d))
        cotangent = rng.standard_normal((*self.leading, d))
        rows = rng.standard_normal((n * self.rank, d))
        rows = np.linalg.qr(rows.T)[0].T if self.orthonormal else rows
        basis = (self.basis_scale * rows).reshape(n, self.rank, d)
        return x.astype(np.float32), cotangent.astype(np.float32), basis.astype(np.float32)

    @property
    def x(self) -> Array:
        return self._drawn[0]

    @property
    def cotangent(self) -> Array:
        return self._drawn[1]

    @property
    def basis(self) -> Array:
        return self._drawn[2]

    @property
    def mix_logits(self) -> Array:
        return self.logits.values

    @property
    def gate_logit(self) -> Array:
        return np.asarray(self.gate, dtype=np.float32)


def adapters(
    logits: st.SearchStrategy[Logits] | None = None,
    leading: tuple[tuple[int, ...], ...] = LEADING,
    gates: Any = None,
    orthonormal: Any = None,
) -> st.SearchStrategy[Adapter]:
    """Adapter inputs; by default with logits that can be compared."""
    return st.builds(
        Adapter,
        comparable_logits(STREAMS, leading=((),)) if logits is None else logits,
        rank=st.sampled_from((1, 2, 3, 4, 1, 2, 3, 4, 5, 8)),
        spare=st.sampled_from((0, 1, 9)),
        leading=st.sampled_from(leading),
        gate=st.floats(-12.0, 12.0, width=32) if gates is None else gates,
        basis_scale=st.sampled_from((1e-3, 1.0, 1e3)),
        x_scale=st.sampled_from((1e-2, 1.0, 300.0)),
        orthonormal=st.booleans() if orthonormal is None else orthonormal,
        seed=SEEDS,
    )
