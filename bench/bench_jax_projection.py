"""Time and accuracy of the Sinkhorn projection and of the adapter in JAX, under ``jax.jit``, beside other forms of it.

    pytest bench/bench_jax_projection.py --benchmark-json=FILE.json

As bench_sinkhorn_projection and bench_residual_mixing, on the same logits. ``compile_seconds`` is the first call.
Clauses: SINK-1..SINK-9, GRAD-1..GRAD-7.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

# One thread, as all of bench/; what a user has set goes before it.
os.environ.setdefault("NPROC", "1")
jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("torch", reason="its normal logits, so that all backends are timed on the same")

import jax.numpy as jnp

import reference
from backends.jax import CRMAAdapter, PreparedAdapter
from bench.accuracy import note_accuracy, relative_error
from bench.bench_sinkhorn_projection import LAYERS, STREAMS, _normal
from bench.jax_projections import JAX_PROJECTIONS
from bench.projections import ITERATIONS
from reference.errors import CRMAError

cases = pytest.mark.parametrize(("contender", "layers"), [(name, size) for size in LAYERS for name in JAX_PROJECTIONS])


@pytest.fixture
def timed_jax(device: str, benchmark: Any) -> Callable[[Callable[[], Any]], None]:
    """``timed_jax(work)``: note what the first call takes, which compiles, then time the others to their end."""
    if device != "cpu":
        pytest.skip("device: got cuda; allowed: cpu, JAX's rows have not been tried on a GPU. Try: --bench-device=cpu")

    def run(work: Callable[[], Any]) -> None:
        start = time.perf_counter()
        jax.block_until_ready(work())
        benchmark.extra_info["compile_seconds"] = time.perf_counter() - start
        benchmark(lambda: jax.block_until_ready(work()))

    return run


def _named(benchmark: Any, contender: str, what: str, kind: str) -> None:
    benchmark.group = f"JAX, {what}, {kind}"
    benchmark.extra_info["contender"] = contender


def _projection(contender: str) -> Any:
    try:
        return JAX_PROJECTIONS[contender]()
    except CRMAError as error:
        pytest.skip(str(error))


def _logits(layers: int, seed: int, deviation: float = 1.0) -> np.ndarray[Any, Any]:
    return np.asarray(_normal(layers, seed, "cpu", deviation).numpy())


@cases
def test_forward(contender: str, layers: int, benchmark: Any, timed_jax: Any) -> None:
    project = jax.jit(_projection(contender))
    _named(benchmark, contender, f"Sinkhorn projection [{layers}, {STREAMS}, {STREAMS}]", "forward")
    logits = _logits(layers, 0)
    given = jnp.asarray(logits)
    timed_jax(lambda: project(given))
    note_accuracy(
        benchmark.extra_info,
        lambda logits: np.asarray(project(jnp.asarray(logits)), np.float64),
        logits,
        _logits(layers, 1, 5.0),
    )


@cases
def test_forward_and_backward(contender: str, layers: int, benchmark: Any, timed_jax: Any) -> None:
    project = _projection(contender)
    _named(benchmark, contender, f"Sinkhorn projection [{layers}, {STREAMS}, {STREAMS}]", "forward+backward")
    logits, cotangent = _logits(layers, 0), _logits(layers, 2)
    given, upstream = jnp.asarray(logits), jnp.asarray(cotangent)

    @jax.jit
    def work(given: Any, upstream: Any) -> Any:
        mixing, pull_back = jax.vjp(project, given)
        return mixing, pull_back(upstream)[0]

    try:
        timed_jax(lambda: work(given, upstream))
    except jax.errors.JaxRuntimeError as failure:
        if contender == "crma":
            raise
        pytest.skip(f"{contender} has no gradient here: {str(failure).strip().splitlines()[0][:120]}")
    truth = reference.sinkhorn_projection_vjp(logits, cotangent, ITERATIONS)
    error = relative_error(np.asarray(work(given, upstream)[1], np.float64), truth)
    benchmark.extra_info["gradient_error"] = error
    if contender == "crma":
        assert error <= 1e-5


def _autodiff(layer: PreparedAdapter, x: Any) -> Any:
    """The formula as written, its derivative JAX's own."""
    flat = layer.basis.reshape(-1, layer.basis.shape[-1])
    streams = (x @ flat.T).reshape(*x.shape[:-1], *layer.basis.shape[:2])
    moved = layer.strength * (layer.mixing @ streams - streams)
    return x + moved.reshape(*x.shape[:-1], -1) @ flat


ADAPTERS = {"crma": lambda layer, x: layer(x), "autodiff": _autodiff}


@pytest.mark.parametrize("kind", ["forward", "forward+backward"])
@pytest.mark.parametrize(("tokens", "hidden_size"), [(1, 576), (448, 576), (2048, 576), (512, 4096)])
@pytest.mark.parametrize("contender", ADAPTERS)
def test_adapter(contender: str, tokens: int, hidden_size: int, kind: str, benchmark: Any, timed_jax: Any) -> None:
    """M and alpha are given, as in a model."""
    _named(benchmark, contender, f"residual mixing ({tokens}, {hidden_size})", kind)
    adapter, mix = CRMAAdapter.init(reference.AdapterConfig(hidden_size), gate_logit=0.0), ADAPTERS[contender]
    layer = adapter.prepared()
    x, upstream = (jax.random.normal(jax.random.key(seed), (tokens, hidden_size)) for seed in (1, 2))

    @jax.jit
    def work(layer: PreparedAdapter, x: Any, upstream: Any) -> Any:
        if kind == "forward":
            return mix(layer, x)
        y, pull_back = jax.vjp(mix, layer, x)
        return y, pull_back(upstream)

    timed_jax(lambda: work(layer, x, upstream))
    y = work(layer, x, upstream) if kind == "forward" else work(layer, x, upstream)[0]
    parameters = reference.AdapterParameters(*map(np.asarray, (adapter.mix_logits, adapter.gate_logit, adapter.basis)))
    moved = reference.adapter_forward(np.asarray(x), parameters) - np.asarray(x, np.float64)
    benchmark.extra_info["moved_error"] = error = relative_error(np.asarray(y - x, np.float64), moved)
    assert error <= 1e-5
