"""The numbers of a layout: inputs whose results are large enough to be compared, whatever the sizes.

A random token of 8,192 numbers has little of itself in the few directions of a basis, and a random cotangent meets it
in none of them: what an adapter does to them is lost beside a rounding error. Most of x and of the cotangent therefore
lies in the span of the basis, in a few streams, and alike enough from token to token that their products add up.
Clauses: CONF-10.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.design.layouts import AdapterLayout, ProjectionLayout
from conformance.strategies import BASES, Adapter, Logits

Array = NDArray[Any]
ACTIVE = 3  # streams in which the coordinates of x, or of the cotangent, are of order one; a tenth in the others
#: the largest x of each dtype whose products with a cotangent of order 1 / x stay within the range of MIX-11's note
LARGEST = {"float16": 4e4, "bfloat16": 1e29, "float32": 1e29, "float64": 1e29}
#: subnormal in this dtype
SUBNORMAL = {"float16": 3e-6, "bfloat16": 5e-39, "float32": 5e-39, "float64": 5e-39}
SPECIAL = ("nan", "inf", "-inf")
ZEROS = {"zeros": 0.0, "negative zeros": -0.0}


@dataclass(frozen=True)
class LogitsCase(Logits):
    """A batch of logits of a layout."""

    @cached_property
    def values(self) -> Array:
        """S, float32; with stride 0 every matrix along the first axis is the same one."""
        drawn = Logits(self.kind, self.magnitude, self.n, self.leading, self.seed).values
        return np.repeat(drawn[:1], len(drawn), axis=0) if self.memory == "stride 0" and self.leading else drawn


@dataclass(frozen=True)
class AdapterCase(Adapter):
    """One call of a layout. ``tokens``: the scale of x, or the special values in it."""

    basis_kind: str = "normal"
    tokens: float | str = 1.0
    dtype: str = "float32"

    @cached_property
    def _drawn(self) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(self.seed)
        n, rank, d = self.logits.n, self.rank, self.hidden_size
        rows = np.linalg.qr(rng.standard_normal((d, n * rank)))[0].T
        basis = BASES[self.basis_kind](rng, rows).reshape(n, rank, d)
        signs = rng.choice((-1.0, 1.0), (*self.leading, 1))
        x, cotangent = (self._spread(rng, rows, signs) for _ in range(2))
        if self.tokens in ZEROS:
            x = np.where(rng.random(x.shape) < 0.5, ZEROS[self.tokens], x)
        size = np.abs(x).max(initial=1.0)
        if self.tokens == "largest":
            x, cotangent = x * (LARGEST[self.dtype] / size), cotangent / LARGEST[self.dtype]
        elif self.tokens == "subnormal":
            x = x * (SUBNORMAL[self.dtype] / size)
        elif isinstance(self.tokens, float):
            x = x * (np.clip(self.tokens, 1e-3, 1e3) if self.dtype == "float16" else self.tokens)
        if self.memory == "stride 0" and self.leading:
            x, cotangent = (np.repeat(array[:1], len(array), axis=0) for array in (x, cotangent))
        return x.astype(np.float32), cotangent.astype(np.float32), basis.astype(np.float32)

    def _spread(self, rng: np.random.Generator, rows: Array, signs: Array) -> Array:
        """Tokens of order one, most of which is common to all, but for the sign, and lies in a few streams."""
        n, rank, d = self.logits.n, self.rank, self.hidden_size
        streams = np.where(rng.permutation(n) < ACTIVE, 1.0, 0.1)[:, None]
        common = (streams * rng.standard_normal((n, rank))).ravel()
        own = (streams * rng.standard_normal((*self.leading, n, rank))).reshape(*self.leading, n * rank)
        inside = (signs * (common + 0.2 * own)) @ rows
        inside *= np.sqrt(d) / max(float(np.linalg.norm(common)), 0.1)
        return np.asarray(0.9 * inside + 0.4 * rng.standard_normal((*self.leading, d)))


def projection_case(layout: ProjectionLayout, seed: int) -> LogitsCase:
    """A batch of logits for ``layout``."""
    kind, magnitude = layout.logits
    return LogitsCase(kind, magnitude, layout.n, layout.leading, seed, layout.memory)


def adapter_case(layout: AdapterLayout, seed: int) -> AdapterCase:
    """A call of ``layout``, of a layout whose x holds a NaN or an infinity without it (see :func:`spoilt`)."""
    kind, magnitude = layout.logits
    return AdapterCase(
        logits=Logits(kind, magnitude, layout.n, (), seed),
        rank=layout.rank,
        spare=layout.spare,
        leading=layout.leading,
        gate=layout.gate,
        basis_scale=1.0,
        x_scale=1.0,
        orthonormal=True,
        seed=seed,
        memory=layout.memory,
        basis_kind=layout.basis,
        tokens=1.0 if layout.tokens in SPECIAL else layout.tokens,
        dtype=layout.dtype,
    )


def spoilt(x: Array, special: str, seed: int) -> tuple[Array, tuple[int, ...]]:
    """``x`` with one number that is not finite, and where it is."""
    rng = np.random.default_rng(seed)
    index = tuple(int(rng.integers(size)) for size in x.shape)
    x = np.array(x)
    x[index] = float(special)
    return x, index
