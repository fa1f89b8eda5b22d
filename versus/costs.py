"""What a system costs besides time per step: compiling, graphs, breaks, memory. Each in a process of its own, twice.

The first child starts with an empty compile cache, the second with what the first left. A child reads a pickled
system from standard input and prints one JSON line.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .generation import generate
from .rows import Row, row
from .system import System
from .workload import HELD_OUT, WORKLOADS, Workload

STATUS = Path("/proc/self/status")
REFERENCES = Path("/proc/self/clear_refs")


def costs(workload: Workload, system: System) -> Row:
    """A row of the figures that need a process of their own."""
    if why := system.why_not(workload):
        return row("costs", workload, system, "own", {}, why=why)
    with tempfile.TemporaryDirectory() as cache:
        children = [_child(workload, system, cache) for _ in range(2)]
    for child in children:
        if "error" in child:
            return row("costs", workload, system, "own", {}, why=child["error"])
    cold, warm = children
    figures = {name: value for name, value in warm.items() if value is not None and name != "compile s"}
    if system.compiled:
        figures |= {"compile s cold": cold["compile s"], "compile s warm": warm["compile s"]}
    return row("costs", workload, system, "own", figures)


def _child(workload: Workload, system: System, cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, workload.key],
        input=base64.b64encode(pickle.dumps(system)),
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return {"error": (done.stderr.decode().strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _measure(workload: Workload, system: System) -> dict[str, float | None]:
    model = workload.load()
    installed = system.install(model, workload)
    torch._dynamo.utils.counters.clear()
    start = time.perf_counter()
    generate(installed, workload, HELD_OUT)
    first = time.perf_counter() - start
    # The second generation, too, may compile: a system may only then know that a value changes.
    generate(installed, workload, HELD_OUT)
    second = time.perf_counter() - start - first
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    compilations = torch._dynamo.utils.get_compilation_metrics()
    recompiles = sum(metrics.recompile_reason is not None for metrics in compilations)
    gc.collect()
    with _counting_launches() as launches, _peak() as peak:
        start = time.perf_counter()
        done = generate(installed, workload, HELD_OUT + 1)
        steady = time.perf_counter() - start
    calls = len(done.calls)
    return {
        "compile s": max(0.0, first + second - 2 * steady),
        "graph launches a call": launches[0] / calls,
        "graph breaks": breaks,
        "recompiles": recompiles,
        "peak MiB": peak[0],
        "state KiB": None if installed.state is None else installed.state() / 1024,
    }


@contextmanager
def _counting_launches() -> Iterator[list[int]]:
    """How often compiled graphs run inside, of whichever system."""
    from torch._inductor.output_code import CompiledFxGraph

    count, call = [0], CompiledFxGraph.__call__

    def counted(self: CompiledFxGraph, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return call(self, *args, **kwargs)

    CompiledFxGraph.__call__ = counted  # type: ignore[method-assign]
    try:
        yield count
    finally:
        CompiledFxGraph.__call__ = call  # type: ignore[method-assign]


@contextmanager
def _peak() -> Iterator[list[float | None]]:
    """The most memory that the process held inside, in MiB; None where the system does not say."""
    peak: list[float | None] = [None]
    try:
        REFERENCES.write_text("5")  # forgets the highest so far
    except OSError:
        yield peak
        return
    yield peak
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    peak[0] = int(lines["VmHWM"].split()[0]) / 1024


def main() -> None:
    (key,) = sys.argv[1:]
    workload = next(workload for workload in WORKLOADS if workload.key == key)
    system = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))
    print(json.dumps(_measure(workload, system)))


if __name__ == "__main__":
    main()
