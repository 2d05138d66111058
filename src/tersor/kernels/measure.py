"""How long GPU work takes, measured so that the numbers can be compared.

A product that is called once per layer finds its weights in memory, never in the L2 cache. So work
is timed over *rotating copies*: enough of them that each has left the cache when its turn comes again,
captured together in one CUDA graph (no launch gaps), replayed, median of the replays over the number
of copies. Rivals are timed in turn with it, replay by replay, so that clocks and neighbours hit both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROTATION_BYTES = 600_000_000  # ten times the largest L2
REPLAYS = 20
SETTLE_SECONDS = 0.3


def copies(nbytes: int) -> int:
    """How many copies of `nbytes` to rotate over."""
    return max(2, min(64, -(-ROTATION_BYTES // nbytes)))


def warm_up(device: torch.device) -> None:
    """Bring the clocks up: a few tenths of a second of matrix products."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(60):
        a @ a
    torch.cuda.synchronize(device)


def capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The calls, one after another, as one CUDA graph; each is called once before (loading, allocation)."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _settle(graphs: Sequence[torch.cuda.CUDAGraph]) -> None:
    """Replay until the clocks are those of this work: after heavy arithmetic they stay low for a while."""
    until = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < until:
        for graph in graphs:
            graph.replay()
        torch.cuda.synchronize()


def event() -> torch.cuda.Event:
    """A moment on the GPU that can be timed."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def seconds(*rivals: Sequence[Callable[[], object]], replays: int = REPLAYS) -> list[float]:
    """Median seconds per call of each rival; a rival is its calls over rotating copies."""
    graphs = [capture(calls) for calls in rivals]
    times: list[list[float]] = [[] for _ in rivals]
    _settle(graphs)
    for _ in range(replays):
        for graph, own, calls in zip(graphs, times, rivals, strict=True):
            begin, end = event(), event()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            own.append(begin.elapsed_time(end) * 1e-3 / len(calls))
    return [statistics.median(own) for own in times]


def wall_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds per call, the host's part included, of work that waits for the GPU by itself."""
    call()
    begin, end = event(), event()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / repeats
