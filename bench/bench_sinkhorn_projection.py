"""Time and accuracy of the Sinkhorn projection: all layers of a model in one call, n = 4, K = 20, float32.

    pytest bench/bench_sinkhorn_projection.py --benchmark-json=FILE.json

Logits are normal with standard deviation 1; the accuracy is also taken at 5 (``_sd5``), where plain Sinkhorn has not
converged after 20 iterations. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench.accuracy import double, note_accuracy, projection_gradient_error, stochasticity
from bench.projections import ITERATIONS, PROJECTIONS, Projection, permutation_mixture, projection_named
from reference.errors import CRMAError

STREAMS = 4
LAYERS = [32, 48]
cases = pytest.mark.parametrize(
    ("contender", "layers"),
    # Compiling takes a quarter of a minute each: one size is enough.
    [(name, layers) for layers in LAYERS for name in PROJECTIONS if layers == 32 or not name.endswith("-compiled")],
)


def _normal(layers: int, seed: int, device: str, deviation: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return (deviation * torch.randn(layers, STREAMS, STREAMS, generator=generator)).to(device)


def _projection(contender: str, device: str) -> Projection:
    try:
        return projection_named(contender, device)
    except CRMAError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", ["forward", "forward+backward"])
def test_permutation_mixture(
    kind: str, layers: int, device: str, benchmark: Any, timed: Callable[[Callable[[], object]], None]
) -> None:
    """Another parametrization of doubly stochastic matrices, from 24 numbers a matrix."""
    _name(benchmark, "mhc-lite (another parametrization)", kind, layers)
    mix, cotangent = permutation_mixture(STREAMS, device), _normal(layers, 2, device)
    weights = torch.randn(layers, 24, generator=torch.Generator().manual_seed(0)).to(device)
    if kind == "forward":
        with torch.no_grad():
            timed(lambda: mix(weights))
    else:
        weights.requires_grad_()
        timed(lambda: torch.autograd.grad(mix(weights), weights, cotangent))
    benchmark.extra_info.update(stochasticity(double(mix(weights))))
    assert benchmark.extra_info["sum_error"] <= 1e-6


def _name(benchmark: Any, contender: str, kind: str, layers: int) -> None:
    benchmark.group = f"Sinkhorn projection [{layers}, {STREAMS}, {STREAMS}], {kind}"
    benchmark.extra_info["contender"] = contender


@cases
def test_forward(
    contender: str, layers: int, device: str, benchmark: Any, timed: Callable[[Callable[[], object]], None]
) -> None:
    project = _projection(contender, device)
    _name(benchmark, contender, "forward", layers)
    logits = _normal(layers, 0, device)
    with torch.no_grad():
        timed(lambda: project(logits))
        note_accuracy(
            benchmark.extra_info,
            lambda given: double(project(torch.from_numpy(given).to(logits))),
            *(double(_normal(layers, seed, device, deviation)) for seed, deviation in ((0, 1.0), (1, 5.0))),
        )


@cases
def test_forward_and_backward(
    contender: str, layers: int, device: str, benchmark: Any, timed: Callable[[Callable[[], object]], None]
) -> None:
    project = _projection(contender, device)
    _name(benchmark, contender, "forward+backward", layers)
    logits, cotangent = _normal(layers, 0, device).requires_grad_(), _normal(layers, 2, device)
    timed(lambda: torch.autograd.grad(project(logits), logits, cotangent))
    error = projection_gradient_error(project, logits, cotangent, ITERATIONS)
    wide = projection_gradient_error(project, _normal(layers, 1, device, 5.0), cotangent, ITERATIONS)
    benchmark.extra_info.update({"gradient_error": error, "gradient_error_sd5": wide})
    if contender.startswith("crma"):
        assert error <= 1e-5
