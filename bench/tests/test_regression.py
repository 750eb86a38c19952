"""Is this project's own code slower than it was? Beside a plain loop in the same run, which load slows as well.

Each case has the share of the loop's time that it took when it was last made faster (one thread of an AMD EPYC); above
1.3 times that share it fails. ``python -m bench.compare`` does the same for all benchmarks, against a stored baseline.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from bench.mixings import layer_of, mixing_named
from bench.projections import projection_named

ROUNDS, CALLS, SLOWER = 40, 10, 1.3
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"  # which makes the loop's many small steps slower
Work = Callable[[], object]


def projection(name: str, gradient: bool) -> Work:
    project = projection_named(name, "cpu")
    logits, cotangent = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    logits.requires_grad_(gradient)
    return lambda: torch.autograd.grad(project(logits), logits, cotangent) if gradient else project(logits)


def adapter(name: str, tokens: int, gradient: bool) -> Work:
    mix, layer = mixing_named(name, "cpu"), layer_of(576, "cpu")
    x, cotangent = torch.randn(2, tokens, 576, generator=torch.Generator().manual_seed(0)).unbind()
    leaves = [value.requires_grad_(gradient) for value in (x, layer.mixing, layer.strength, layer.basis)]
    return lambda: torch.autograd.grad(mix(x, layer), leaves, cotangent) if gradient else mix(x, layer)


#: case -> what makes the work of a name, the name of the loop, and the share of its time
CASES: dict[str, tuple[Callable[[str], Work], str, float]] = {
    "projection": (partial(projection, gradient=False), "loop", 0.38 if HAS_AVX512 else 0.57),
    "projection with gradient": (partial(projection, gradient=True), "loop", 0.47),
    "adapter, one token": (partial(adapter, tokens=1, gradient=False), "autograd", 1.7),
    "adapter, one token, with gradient": (partial(adapter, tokens=1, gradient=True), "autograd", 1.25),
    "adapter, 448 tokens, with gradient": (partial(adapter, tokens=448, gradient=True), "autograd", 0.9),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fastest(*works: Work) -> list[float]:
    """Seconds of the fastest of many calls of each, in turn."""
    best = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for index, work in enumerate(works):
            for _ in range(CALLS):
                start = time.perf_counter()
                work()
                best[index] = min(best[index], time.perf_counter() - start)
    return best


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_it_was_beside_a_plain_loop(name: str) -> None:
    make, loop, share = CASES[name]
    seconds, of_loop = fastest(make("crma"), make(loop))
    assert seconds / of_loop <= SLOWER * share, f"{1e6 * seconds:.0f} us beside {1e6 * of_loop:.0f} us"


def test_a_slower_function_is_noticed() -> None:
    """The measure itself: twice the work takes twice the time."""
    ours = projection("crma", gradient=False)
    seconds, of_loop = fastest(lambda: (ours(), ours()), ours)
    assert 1.6 < seconds / of_loop < 2.6
