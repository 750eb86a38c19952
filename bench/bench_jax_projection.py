"""Time and accuracy of the Sinkhorn projection and of the adapter in JAX, under ``jax.jit``, beside other forms of it.

    pytest bench/bench_jax_projection.py --benchmark-json=FILE.json

As bench_sinkhorn_projection and bench_residual_mixing, on the same logits. ``compile_seconds`` is the first call.
``scan`` is this project's map in logarithms with JAX's own derivative. ``maxtext`` is the formula of MaxText's
hyper-connections, which is DeepSeek's: a softmax over rows, then sums divided out with an epsilon added to each.
``ott`` is optimal transport with the cost -S and entropy 1 by ott-jax, to its default threshold. The last two have no
Birkhoff correction, so they compute another matrix.
Clauses: SINK-1..SINK-9, GRAD-1..GRAD-7.
"""

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
from jax import Array, lax

import reference
from backends.jax import CRMAAdapter, PreparedAdapter, sinkhorn_projection
from bench.accuracy import note_accuracy, relative_error
from bench.bench_sinkhorn_projection import LAYERS, STREAMS, _normal
from bench.projections import ITERATIONS, package
from reference.errors import CRMAError

EPSILON = 1e-6  # MaxText's


def _crma(logits: Array) -> Array:
    return sinkhorn_projection(logits, ITERATIONS)


def _scan(logits: Array) -> Array:
    def step(log_matrix: Array, _: None) -> tuple[Array, None]:
        return jax.nn.log_softmax(jax.nn.log_softmax(log_matrix, -1), -2), None

    log_matrix, _ = lax.scan(step, logits - logits.max((-2, -1), keepdims=True), None, length=ITERATIONS - 1)
    plain = jax.nn.softmax(jax.nn.log_softmax(log_matrix, -1), -2)
    row_sums = plain.sum(-1, keepdims=True)
    largest = row_sums.max(-2, keepdims=True)
    return plain / largest + (1 - row_sums / largest) / plain.shape[-1]


def _maxtext(logits: Array) -> Array:
    matrix = jax.nn.softmax(logits, -1) + EPSILON
    matrix = matrix / (matrix.sum(-2, keepdims=True) + EPSILON)
    for _ in range(ITERATIONS - 1):
        matrix = matrix / (matrix.sum(-1, keepdims=True) + EPSILON)
        matrix = matrix / (matrix.sum(-2, keepdims=True) + EPSILON)
    return matrix


def _ott(logits: Array) -> Array:
    linear, geometry = package("ott.solvers.linear", OTT), package("ott.geometry.geometry", OTT)

    def one(logits: Array) -> Array:
        ones = jnp.ones(len(logits))
        cost = geometry.Geometry(cost_matrix=-logits, epsilon=1.0)
        plan: Array = linear.solve(cost, a=ones, b=ones).matrix
        return plan

    return jax.vmap(one)(logits)


OTT = "ott-jax lineax equinox jaxtyping wadler-lindig"
JAX_PROJECTIONS = {"crma": _crma, "scan": _scan, "maxtext": _maxtext, "ott": _ott}
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
        if contender == "ott":
            package("ott", OTT)
    except CRMAError as error:
        pytest.skip(str(error))
    return JAX_PROJECTIONS[contender]


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
