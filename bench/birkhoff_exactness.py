"""How exactly does a backend land on the Birkhoff polytope? Worst sums and spectral norms for float32 logits.

    python -m bench.birkhoff_exactness --backend torch-cpu --out bench/results/birkhoff_exactness.json
    python -m bench.birkhoff_exactness --plain          # why the Birkhoff correction is there

Sums and singular values are taken in float64 of what the backend returned. Exit status: 0 if SINK-5, SINK-6 and SINK-7
hold on every matrix, 1 if one is broken, 2 if the measurement could not be made. Clauses: SINK-5..SINK-7.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import reference
from backends import Backend, load_backend
from bench import program
from bench.birkhoff_families import ADVERSARIAL, RANDOM, Family, draw, normal
from bench.machine import processor, versions

# The uncorrected P is no public function: nobody should use it. It is measured here in float32, as a backend would run.
from reference.sinkhorn_projection import _birkhoff_correction, _sinkhorn

SUM_BOUND = 5e-7
NORM_BOUND = 5e-7
CHUNK = 10_000


@dataclasses.dataclass
class Row:
    """Worst figures of one family of logits."""

    family: str
    matrices: int = 0
    row_error: float = 0.0
    column_error: float = 0.0
    norm_excess: float = -1.0
    smallest_entry: float = 1.0
    non_finite: int = 0
    median_difference: float | None = None

    def add(self, mixing: NDArray[Any]) -> None:
        """Take in a batch (B, n, n) of matrices; those with NaN or infinity are counted, not scored."""
        self.matrices += len(mixing)
        finite = np.isfinite(mixing).all(axis=(1, 2))
        self.non_finite += int((~finite).sum())
        scored = mixing[finite].astype(np.float64)
        if not len(scored):
            return
        self.row_error = max(self.row_error, float(np.abs(scored.sum(axis=2) - 1).max()))
        self.column_error = max(self.column_error, float(np.abs(scored.sum(axis=1) - 1).max()))
        self.norm_excess = max(self.norm_excess, float(np.linalg.svd(scored, compute_uv=False).max()) - 1)
        self.smallest_entry = min(self.smallest_entry, float(scored.min()))

    @property
    def holds(self) -> bool:
        """SINK-5 (sums, no NaN), SINK-6 (spectral norm) and SINK-7 (sign)."""
        exact = max(self.row_error, self.column_error) <= SUM_BOUND and self.norm_excess <= NORM_BOUND
        return exact and self.smallest_entry >= 0 and self.non_finite == 0


def measure(backend: Backend, family: str, draws: Iterator[NDArray[np.float32]], iterations: int) -> Row:
    """Project batches of logits and collect the worst figures."""
    row, differences = Row(family), []
    for logits in draws:
        mixing = np.asarray(backend.sinkhorn_projection(logits, iterations))
        row.add(mixing)
        truth = reference.sinkhorn_projection(logits, iterations)
        differences.append(np.abs(mixing - truth).max(axis=(1, 2)))
    row.median_difference = float(np.median(np.concatenate(differences)))
    return row


def plain_and_corrected(rng: np.random.Generator, count: int, n: int, iterations: int) -> list[Row]:
    """The uncorrected P beside M, both in float32 arithmetic, for normal logits of four scales."""
    rows = []
    for deviation in (1.0, 5.0, 20.0, 50.0):
        plain, corrected = Row(f"P, sd {deviation:g}"), Row(f"M, sd {deviation:g}")
        for logits in _batches(normal(deviation), rng, count, [n]):
            uncorrected = _sinkhorn(cast(Any, logits), iterations).plain
            plain.add(uncorrected)
            corrected.add(_birkhoff_correction(uncorrected))
        rows += [plain, corrected]
    return rows


def _batches(
    family: Family, rng: np.random.Generator, count: int, sizes: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    for share, n in zip(_split(count, len(sizes)), sizes, strict=True):
        for start in range(0, share, CHUNK):
            yield draw(family, rng, min(CHUNK, share - start), n)


def _split(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _table(rows: Sequence[Row]) -> str:
    lines = [["family", "matrices", "row error", "column error", "norm - 1", "smallest", "NaN", "median |M - ref|"]]
    lines[0].append("holds")
    for row in rows:
        worst = [f"{x:.1e}" for x in (row.row_error, row.column_error, row.norm_excess, row.smallest_entry)]
        difference = "" if row.median_difference is None else f"{row.median_difference:.1e}"
        cells = [f"{row.matrices:,}", *worst, str(row.non_finite), difference, "yes" if row.holds else "NO"]
        lines.append([row.family, *cells])
    return program.aligned(lines)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = program.parser("birkhoff_exactness", __doc__)
    parser.add_argument("--backend", default="torch-cpu", help="a name or module:factory (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100_000, help="matrices in all (default: %(default)s)")
    parser.add_argument("--adversarial", type=int, default=10_000, help="how many of them (default: %(default)s)")
    parser.add_argument("--streams", type=int, nargs="+", default=[4], help="n, one or several (default: 4)")
    parser.add_argument("--iterations", type=int, default=20, help="K (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="compare uncorrected Sinkhorn with M instead, in float32")
    options = parser.parse_args(arguments)
    if min(options.streams) < 1 or options.iterations < 1 or options.seed < 0:
        parser.error("--streams and --iterations must be at least 1, --seed at least 0")
    if options.plain and (len(options.streams) > 1 or options.count < 4):
        parser.error("--plain takes one value of --streams and --count >= 4")
    least_random, least_adversarial = (len(options.streams) * len(kind) for kind in (RANDOM, ADVERSARIAL))
    if options.adversarial < least_adversarial or options.count - options.adversarial < least_random:
        parser.error(
            f"every family needs a matrix of each size: --adversarial >= {least_adversarial} "
            f"and --count >= --adversarial + {least_random}"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; 0 if every bound holds, 1 if not, 2 if something stood in the way."""
    options = _parsed(arguments)
    return program.run("birkhoff_exactness", lambda: _measured(options))


def _measured(options: argparse.Namespace) -> int:
    rng = np.random.default_rng(options.seed)
    if options.plain:
        name, version, device = "reference in float32", f"NumPy {np.__version__}", "cpu"
        rows = plain_and_corrected(rng, options.count // 4, options.streams[0], options.iterations)
    else:
        backend = load_backend(options.backend)
        name, version, device = backend.name, backend.version, backend.device
        rows = []
        for kind, total in ((RANDOM, options.count - options.adversarial), (ADVERSARIAL, options.adversarial)):
            for share, (label, family) in zip(_split(total, len(kind)), kind.items(), strict=True):
                draws = _batches(family, rng, share, options.streams)
                rows.append(measure(backend, label, draws, options.iterations))
    print(f"{name} ({version}), {device}: n = {options.streams}, K = {options.iterations}\n{_table(rows)}")
    judged = [row for row in rows if not row.family.startswith("P,")]
    passed = all(row.holds for row in judged)
    worst = max(max(row.row_error, row.column_error) for row in judged)
    print(
        f"{sum(r.matrices for r in judged):,} matrices; worst sum error {worst:.2e} (allowed {SUM_BOUND:g}), "
        f"worst norm - 1 {max(r.norm_excess for r in judged):.2e} (allowed {NORM_BOUND:g}), "
        f"NaN {sum(r.non_finite for r in judged)}: {'holds' if passed else 'BROKEN'}"
    )
    if options.out:
        settings = {"backend": name, "version": version, "device": device, "processor": processor()}
        settings |= {**versions("numpy"), "spec": reference.SPEC_VERSION}
        settings |= {key: getattr(options, key) for key in ("streams", "iterations", "seed", "plain")}
        result = {**settings, "bounds": {"sum": SUM_BOUND, "norm": NORM_BOUND}, "holds": passed}
        program.store(options.out, {**result, "rows": [dataclasses.asdict(row) for row in rows]})
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
