"""Lets Inductor time kernels where the host cannot be seen, for every system alike.

Inductor chooses among a kernel's block sizes by timing each between two events. Of a kernel of a few microseconds that
sees little but how long the host takes to launch it: 30 microseconds on the machine that this was written for, so that
the choice, and a twentieth of a reused step, was left to chance. In a CUDA graph launches follow each other without the
host. Inductor also empties the cache before each launch; here a kernel finds its inputs there if they fit, as it mostly
does in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.runtime import triton_heuristics

LAUNCHES = 20  # in one graph
REPLAYS = 5

Launch = Callable[[], Any]


class GraphBenchmarker:
    """Stands in for Inductor's own benchmarker, which goes on to time what is not a kernel on the current stream."""

    def __init__(self, usual: Any) -> None:
        self._usual = usual

    def benchmark(self, fn: Launch, *args: Any, device: Any = None, **options: Any) -> float:
        """Milliseconds of one call: the shortest of some replays, as other processes may use the device meanwhile."""
        if args or device != "cuda":
            return float(self._usual.benchmark(fn, *args, device=device, **options))
        try:
            fn()  # a kernel that cannot run fails here, and not in a capture
            graph = captured(fn)
        except RuntimeError as error:
            print(f"a kernel is timed without a graph: {error}", flush=True)
            return float(self._usual.benchmark(fn, device=device, **options))  # which knows what to make of it
        graph.replay()
        return min(milliseconds(graph) for _ in range(REPLAYS)) / LAUNCHES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)


def captured(fn: Launch) -> Any:
    """Calls of `fn` as a graph, captured on the current stream, which must not be the default one."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        for _ in range(LAUNCHES):
            fn()
    finally:
        graph.capture_end()
    return graph


def milliseconds(graph: Any) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def tune_in_graphs() -> None:
    """From now on, in this process."""
    stream = torch.cuda.Stream()
    usual = triton_heuristics.CachingAutotuner.bench

    def bench(self: Any, *args: Any, **options: Any) -> float:
        torch.cuda.synchronize()  # whatever makes the kernel's inputs runs on another stream
        with torch.cuda.stream(stream):  # to which Inductor launches
            return float(usual(self, *args, **options))

    triton_heuristics.CachingAutotuner.bench = bench  # type: ignore[method-assign]
    triton_heuristics.benchmarker = GraphBenchmarker(triton_heuristics.benchmarker)  # type: ignore[assignment]
