"""One thread, one device for all benchmarks, and a JSON file that says which machine it is of."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.cuda_graph import gpu_seconds
from bench.machine import machine_kind, require_device, versions
from reference.errors import CRMAError

DEVICE = pytest.StashKey[str]()
Timed = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("crma benchmarks").addoption(
        "--bench-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device of the benchmarks; auto is cuda where there is one (default: %(default)s)",
    )


def _device(config: pytest.Config) -> str:
    if DEVICE not in config.stash:
        import torch

        torch.set_num_threads(1)  # tiny matrices gain nothing from more, and shared machines time them at random
        try:
            config.stash[DEVICE] = require_device(config.getoption("--bench-device"))
        except CRMAError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[DEVICE]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--bench-device") == "cuda":
        _device(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not items or _device(config) != "cuda":
        return
    import torch

    def drained() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    # Read before and after each round of many calls: the GPU's queue is empty at both, the calls between are queued.
    timer = pytest.mark.benchmark(timer=drained, min_time=1e-3)
    for item in items:
        item.add_marker(timer)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """ "cpu" or "cuda"."""
    return _device(pytestconfig)


@pytest.fixture
def timed(benchmark: Any, device: str) -> Iterator[Callable[[Timed], None]]:
    """``timed(work)``: warm up, then time ``work()``; on a GPU also without launches, as ``gpu_seconds``."""
    import torch

    def run(work: Timed) -> None:
        for _ in range(3):  # compiles and tunes what is compiled and tuned at the first calls
            work()

        benchmark(work)
        if device == "cuda" and benchmark.extra_info["contender"].startswith(("copy", "crma", "liger")):
            benchmark.extra_info["gpu_seconds"] = gpu_seconds(work)

    yield run
    torch.compiler.reset()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # host name, clock and cache sizes of the moment are nobody's business
    machine_info |= {"kind": machine_kind(_device(config)), "versions": versions()}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # thousands of rounds; the quartiles are kept
