"""The time a GPU needs for a call when launching costs nothing: replays of a CUDA graph of it."""

import statistics
from collections.abc import Callable


def gpu_seconds(work: Callable[[], object], replays: int = 50, rounds: int = 5) -> float | None:
    """Median over rounds of the time of one replay; None where the call cannot be captured (it waits for the GPU)."""
    import torch

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:
        return None
    return event_seconds(graph.replay, replays, rounds)


def event_seconds(work: Callable[[], object], calls: int, rounds: int = 5) -> float:
    """Median over rounds of the time of one of ``calls`` queued calls, by CUDA events."""
    import torch

    times = []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000 / calls)
    return statistics.median(times[1:])
