"""The golden vectors, by group: one group is one JSON header with one data file.

Clauses: VEC-1, VEC-3, VEC-4.
"""

from collections.abc import Callable
from itertools import chain

from conformance.golden_vectors.adapters import (
    adapter_cases,
    displacement_case,
    half_precision_case,
    spectrum_case,
)
from conformance.golden_vectors.cases import Case, HadamardAdapter
from conformance.golden_vectors.invalid import invalid_adapters, invalid_projections
from conformance.golden_vectors.projections import projection_cases, sums_case, tie_cases
from conformance.golden_vectors.state_files import state_cases
from conformance.strategies import Adapter, Logits

HUGE = 2.0**120  # times integers up to 16: logits up to 2.1e37, the end of the lattice that float32 holds exactly
FEW = (("normal", 1.0), ("normal", 5.0), ("near permutation", 1.0), ("triangular", 5.0), ("constant", 1.0))
LATTICES = (("lattice", 2.0**12), ("lattice", HUGE))
#: n -> kinds and magnitudes; n = 4 is the default and has the most, n = 64 is for size alone
PROJECTIONS = {
    1: (("normal", 1.0), ("lattice", HUGE)),
    2: (*FEW, *LATTICES),
    3: (*FEW, *LATTICES),
    4: (
        *FEW,
        ("normal", 0.1),
        ("normal", 20.0),
        ("near permutation", 20.0),
        ("triangular", 20.0),
        ("block", 5.0),
        ("rank one", 1.0),
        *LATTICES,
        ("lattice", 2.0**60),
    ),
    8: (*FEW[1:4], *LATTICES),
    16: (FEW[0], FEW[3], LATTICES[1]),
    64: (FEW[0],),
}
SUMS = [
    (kind, magnitude, n, k)
    for kind in ("normal", "near permutation", "triangular")
    for magnitude, n, k in ((50.0, 4, 1), (1e10, 3, 3), (1e37, 4, 20), (1e37, 8, 1))
]


def _logits(n: int, kind: str = "normal", magnitude: float = 1.0) -> Logits:
    return Logits(kind, magnitude, n, (), 0)


def _adapter(
    n: int = 4,
    rank: int = 2,
    spare: int = 5,
    leading: tuple[int, ...] = (3,),
    gate: float = 0.5,
    basis_scale: float = 1.0,
    x_scale: float = 1.0,
    logits: Logits | None = None,
) -> Adapter:
    return Adapter(logits or _logits(n), rank, spare, leading, gate, basis_scale, x_scale, False, 0)


def _projections(*sizes: int) -> list[Case]:
    several = (
        projection_cases(f"n={n}, {kind}, {magnitude:g}", _logits(n, kind, magnitude))
        for n in sizes
        for kind, magnitude in PROJECTIONS[n]
    )
    return list(chain.from_iterable(several))


def _special_projections() -> list[Case]:
    leading = ((2, 3), (0,), (2, 0, 3))
    batches = (projection_cases(f"batch {axes}", Logits("normal", 1.0, 4, axes, 0), (3,)) for axes in leading)
    sums = (sums_case(_logits(n, kind, magnitude), k) for kind, magnitude, n, k in SUMS)
    return [*chain.from_iterable(batches), *tie_cases(), *sums]


def _adapter_sizes() -> list[Case]:
    sizes = ((1, 2, 3), (2, 1, 0), (3, 2, 1), (4, 4, 0), (4, 4, 48), (8, 2, 9), (16, 1, 4), (4, 4, 240))
    leading = ((), (5,), (2, 3), (1,))
    return [
        case
        for index, (n, rank, spare) in enumerate(sizes)
        for case in adapter_cases(f"n={n} r={rank} d={n * rank + spare}", _adapter(n, rank, spare, leading[index % 4]))
    ]


def _adapter_gates() -> list[Case]:
    gates = (-12.0, -5.0, -1.0, 0.0, 3.0, 12.0)
    return [case for gate in gates for case in adapter_cases(f"gate {gate:g}", _adapter(gate=gate))]


def _adapter_scales() -> list[Case]:
    scales = ((1e-3, 1.0), (1e3, 1.0), (1.0, 1e-2), (1.0, 300.0))
    cases = [
        adapter_cases(f"basis times {basis:g}, x times {x:g}", _adapter(basis_scale=basis, x_scale=x))
        for basis, x in scales
    ]
    start = HadamardAdapter(_logits(4, "normal", 0.5), 4, 48, (2,), -5.0, 1.0, 1.0, True, 0)
    cases.append(adapter_cases("orthonormal basis, start values", start))
    cases += [adapter_cases(f"batch {axes}", _adapter(leading=axes), 3) for axes in ((2, 1, 3), (0,), (2, 0, 3))]
    return list(chain.from_iterable(cases))


def _adapter_logits() -> list[Case]:
    kinds = (
        ("normal", 5.0, 1),
        ("normal", 1.0, 3),
        ("near permutation", 1.0, 20),
        ("triangular", 5.0, 3),
        ("constant", 1.0, 20),
    )
    cases = [
        adapter_cases(f"{kind}, {magnitude:g}, K={k}", _adapter(logits=_logits(4, kind, magnitude)), k)
        for kind, magnitude, k in kinds
    ]
    lattice = _adapter(logits=_logits(5, "lattice", HUGE))
    return [*chain.from_iterable(cases), *adapter_cases("lattice, 2^120", lattice, 20, gradients=False)]


def _certificates() -> list[Case]:
    near, far = _adapter(gate=1.0, leading=()), _adapter(3, 1, 10, (), -1.0)
    return [
        spectrum_case("spectrum, n r < d", near),
        spectrum_case(
            "spectrum, n r = d, nearly a permutation", _adapter(3, 2, 0, (), 6.0, logits=_logits(3, "near permutation"))
        ),
        spectrum_case("spectrum, K=1", far, 1),
        displacement_case("displacement, the same sizes", near, near),
        displacement_case("displacement, other streams and ranks", near, far),
    ]


def _half_precision() -> list[Case]:
    return [half_precision_case(dtype, _adapter(gate=3.0)) for dtype in ("float16", "bfloat16")]


GROUPS: dict[str, Callable[[], list[Case]]] = {
    "sinkhorn-projection-small": lambda: _projections(1, 2, 3),
    "sinkhorn-projection-n4": lambda: _projections(4),
    "sinkhorn-projection-large": lambda: _projections(8, 16, 64),
    "sinkhorn-projection-special": _special_projections,
    "adapter-sizes": _adapter_sizes,
    "adapter-gates": _adapter_gates,
    "adapter-scales": _adapter_scales,
    "adapter-logits": _adapter_logits,
    "adapter-half-precision": _half_precision,
    "certificates": _certificates,
    "invalid": lambda: [*invalid_projections(), *invalid_adapters(_adapter(3, 2, 1, (2,)))],
    "state-files": state_cases,
}
