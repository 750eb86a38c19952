"""Golden vectors of the Sinkhorn projection, forward and gradient. Clauses: VEC-3, VEC-4."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.agreement import Comparison, projection, projection_gradient, settled_within
from conformance.golden_vectors.cases import REFERENCE, Case, Row, output, seed_of, settle, words
from conformance.strategies import Logits, random_cotangent
from conformance.tolerances import tolerance_for

Array = NDArray[Any]


def projection_cases(name: str, logits: Logits, iterations: tuple[int, ...] = (1, 3, 20)) -> list[Case]:
    """Forward and gradient at each K, of the same logits and the same random cotangent."""
    return settle(lambda seed: _projections(name, replace(logits, seed=seed), iterations), name, 2 * len(iterations))


def _projections(name: str, logits: Logits, iterations: tuple[int, ...]) -> list[Case]:
    drawn = f"{words(logits)}; cotangent normal, seed {logits.seed + 1}"
    cotangent = random_cotangent(logits.values.shape, logits.seed + 1)
    allowed = max(tolerance_for("sinkhorn_projection", "float32", "gradient").atol, 4e-6)
    within = allowed * logits.condition * np.abs(cotangent).max(initial=0.0)
    trivial = logits.n == 1 or not logits.values.size
    cases = []
    for k in iterations:
        inputs = {"mix_logits": logits.values}
        values = output("mixing", projection(REFERENCE, logits, k), ("sinkhorn_projection", "forward"), trivial)
        clauses: tuple[str, ...] = ("SINK-1", "SINK-2", "SINK-3", "SINK-4")
        cases.append(Case(f"{name}, K={k}", "sinkhorn_projection", clauses, drawn, k, inputs, values))
        if logits.values.size and not settled_within(logits, cotangent, k, within).all():
            continue
        inputs = {**inputs, "cotangent": cotangent}
        comparison = projection_gradient(REFERENCE, logits, cotangent, k)
        values = output("grad_mix_logits", comparison, ("sinkhorn_projection", "gradient"), trivial)
        clauses = ("GRAD-1", "GRAD-2", "GRAD-3")
        if values:
            cases.append(Case(f"{name}, K={k}, gradient", "sinkhorn_projection_vjp", clauses, drawn, k, inputs, values))
    return cases


def sums_case(logits: Logits, iterations: int) -> Case:
    """Logits of a magnitude at which only the sums of M can be asked for: Theorem 1."""
    name = f"sums, n={logits.n}, {logits.kind}, {logits.magnitude:g}, K={iterations}"
    logits = replace(logits, seed=seed_of(name))
    ones = np.ones(logits.values.shape[:-1])
    row: Row = ("row and column sums", "forward")
    comparison = Comparison(ones, ones, 1.0)
    outputs = output("row_sums", comparison, row) | output("column_sums", comparison, row)
    inputs = {"mix_logits": logits.values}
    return Case(name, "sinkhorn_projection_sums", ("SINK-5", "SINK-7"), words(logits), iterations, inputs, outputs)


class TiedLogits(Logits):
    """Two equal triangular blocks: their row sums tie exactly, far from 1, so the first argmax decides (GRAD-2)."""

    @property
    def values(self) -> Array:
        logits = np.full((4, 4), -4096.0)
        logits[:2, :2] = logits[2:, 2:] = 1024.0 * np.asarray([[0, -1], [0, 0]])
        return logits.astype(np.float32)


TIED = TiedLogits("lattice", 1024.0, 4, (), 0)


def tie_cases() -> Iterator[Case]:
    cotangent = random_cotangent((4, 4), seed_of("tie"))
    for k in (1, 2):
        comparison = projection_gradient(REFERENCE, TIED, cotangent, k)
        outputs = output("grad_mix_logits", comparison, ("sinkhorn_projection", "gradient"))
        drawn = "two equal blocks [[0, -1024], [0, 0]], all else -4096; cotangent normal"
        inputs = {"mix_logits": TIED.values, "cotangent": cotangent}
        yield Case(f"tie, K={k}, gradient", "sinkhorn_projection_vjp", ("GRAD-2",), drawn, k, inputs, outputs)
