"""Inputs: hypothesis chooses sizes, kinds, magnitudes and a seed; a NumPy Generator with this seed draws the numbers.

Every input is float32, so that a float32 port and the float64 reference start from the same values. Sizes are those of
a short list, since a port may compile a program for each of them; the covering design (:mod:`conformance.design`) sees
to all others. With ``--profile random`` they are drawn freely.

Clauses: SINK-1, MIX-1, CONF-11.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conformance.design.axes import Axis

Array = NDArray[Any]
STREAMS = range(1, 9)
SIZES = range(1, 65)
SEEDS = st.integers(0, 2**32 - 1)
LEADING = ((), (3,), (2, 3), (1,))
LEADING_WITH_EMPTY = (*LEADING, (0,), (2, 0, 3))
QUICK, FREE = "crma-quick", "crma-random"  # profiles of hypothesis: in the second one sizes are drawn freely
#: n and the leading axes of logits that are drawn: single matrices and batches, small and large
LOGITS_SIZES: tuple[tuple[int, tuple[int, ...]], ...] = (
    *((n, ()) for n in (1, 2, 3, 4, 6, 16, 64)),
    *((2, (3,)), (3, (2, 3)), (5, (1,)), (3, (0,)), (4, (2, 0, 3))),
)
#: n, r, what d has beyond n r, and the leading axes of x; those of ``--quick`` first
ADAPTER_SIZES: tuple[tuple[int, int, int, tuple[int, ...]], ...] = (
    *((1, 2, 1, (3,)), (2, 3, 9, (2, 3)), (3, 2, 1, (1,)), (4, 2, 9, ()), (3, 2, 4, (0,))),
    *((6, 1, 0, (1,)), (3, 1, 9, (3,)), (4, 4, 0, (2, 3)), (8, 2, 9, (3,)), (2, 2, 1, (2, 0, 3))),
)
QUICK_SIZES = 5


def _profile(fixed: Any, free: Any) -> st.SearchStrategy[Any]:
    """``free()`` in the profile that draws freely, and ``fixed()`` in all others."""
    return st.deferred(lambda: free() if settings.get_current_profile_name() == FREE else fixed())


ITERATIONS = _profile(
    lambda: st.sampled_from((20,) if settings.get_current_profile_name() == QUICK else (1, 3, 20)),
    lambda: st.integers(1, 100),
)

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
    memory: str = "C"

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


def _logits(
    kinds: tuple[str, ...], magnitudes: tuple[float, ...], n: Sequence[int], leading: tuple[tuple[int, ...], ...]
) -> st.SearchStrategy[Logits]:
    def build(kind: str, magnitude: float, sizes: tuple[int, tuple[int, ...]], seed: int) -> Logits:
        return Logits(kind, magnitude, *sizes, seed)

    sizes = _profile(
        lambda: st.sampled_from([pair for pair in LOGITS_SIZES if pair[0] in n and pair[1] in leading]),
        lambda: st.tuples(st.sampled_from(n), st.sampled_from(leading)),
    )
    return st.builds(build, st.sampled_from(kinds), st.sampled_from(magnitudes), sizes, SEEDS)


def logits_of(kinds: tuple[str, ...], magnitudes: tuple[float, ...], n: Sequence[int]) -> st.SearchStrategy[Logits]:
    """Single matrices of some kinds alone."""
    return _logits(kinds, magnitudes, n, ((),))


def lattice_logits(
    n: Sequence[int] = SIZES, leading: tuple[tuple[int, ...], ...] = LEADING
) -> st.SearchStrategy[Logits]:
    """Logits of any magnitude for which float32 and float64 must agree."""
    return _logits(("lattice",), tuple(2.0**k for k in LATTICE_EXPONENTS), n, leading)


def comparable_logits(
    n: Sequence[int] = SIZES,
    leading: tuple[tuple[int, ...], ...] = LEADING_WITH_EMPTY,
    magnitudes: tuple[float, ...] = MODERATE,
) -> st.SearchStrategy[Logits]:
    """Logits whose projection a port can be asked to agree with, in float32."""
    return _logits(KINDS, magnitudes, n, leading) | lattice_logits(n, leading)


def every_logits(n: Sequence[int] = SIZES, leading: tuple[tuple[int, ...], ...] = LEADING) -> st.SearchStrategy[Logits]:
    """Logits of every magnitude up to 1e37, n up to 64: for the invariants."""
    return _logits(KINDS, EVERY_MAGNITUDE, n, leading) | lattice_logits(n, leading)


SEVERAL_STREAMS = comparable_logits(n=range(2, 7), leading=((),), magnitudes=(0.5, 1.0, 5.0))
OPEN_GATES = st.floats(-2.0, 12.0, width=32)
#: logits without a kink or a saturated entry nearby, so that a difference quotient is a derivative
SMOOTH = logits_of(("normal", "rank one"), (0.1, 1.0, 3.0), range(1, 5))


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
    memory: str = "C"

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

    @cached_property
    def basis_norm(self) -> float:
        """||A||_2, of A as n r rows."""
        return float(np.linalg.norm(self.basis.astype(np.float64).reshape(-1, self.hidden_size), 2))

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
    """Adapter inputs; by default with logits that can be compared. ``logits``: of single matrices."""

    def build(logits: Logits, pick: Any, **others: Any) -> Adapter:
        if isinstance(pick, int):
            quick = settings.get_current_profile_name() == QUICK
            allowed = [row for row in ADAPTER_SIZES[: QUICK_SIZES if quick else None] if row[3] in leading]
            rows = [row for row in allowed if row[0] == logits.n] or allowed
            n, *pick = rows[pick % len(rows)]
            logits = replace(logits, n=n)
        return Adapter(logits, *pick, **others)

    ranks = st.sampled_from((1, 2, 3, 4, 5, 8))
    return st.builds(
        build,
        comparable_logits(STREAMS, leading=((),)) if logits is None else logits,
        pick=_profile(
            lambda: st.integers(0, 9),
            lambda: st.tuples(ranks, st.integers(0, 9), st.sampled_from(leading)),
        ),
        gate=st.floats(-12.0, 12.0, width=32) if gates is None else gates,
        basis_scale=st.sampled_from((1e-3, 1.0, 1e3)),
        x_scale=st.sampled_from((1e-2, 1.0, 300.0)),
        orthonormal=st.booleans() if orthonormal is None else orthonormal,
        seed=SEEDS,
    )


def free_layouts(axes: tuple[Axis, ...], fits: Callable[[dict[str, Any]], bool], table: Any) -> st.SearchStrategy[Any]:
    """A row of values by the names of ``axes``: one of ``table``, or drawn freely within the same limits."""
    values = {axis.name: [value for values in axis.classes.values() for value in values] for axis in axes}
    drawn = {name: st.sampled_from(of_axis) for name, of_axis in values.items()}
    return _profile(lambda: st.sampled_from(table), lambda: st.fixed_dictionaries(drawn).filter(fits))


#: bases of every rank from one on: (generator, orthonormal rows) -> rows
BASES: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "orthonormal": lambda rng, rows: rows,
    "normal": lambda rng, rows: rng.standard_normal(rows.shape),
    "times 1/1000": lambda rng, rows: rng.standard_normal(rows.shape) / 1000.0,
    "times 1000": lambda rng, rows: rng.standard_normal(rows.shape) * 1000.0,
    "nearly orthonormal": lambda rng, rows: rows + 0.02 * rng.standard_normal(rows.shape) / np.sqrt(rows.shape[1]),
    "of two sizes": lambda rng, rows: rows * np.where(np.arange(len(rows)) < 2, 1.0, 1e-3)[:, None],
    "repeated rows": lambda rng, rows: rows[np.arange(len(rows)) // 2],
    "zero rows": lambda rng, rows: rows * (np.arange(len(rows)) % 3 != 1)[:, None],
    "one row": lambda rng, rows: rows * (np.arange(len(rows)) == len(rows) // 2)[:, None],
}
