"""What only CUDA's own captures can show: one that fails, and what a branch costs by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dicache_compile import explain
from dicache_compile.engines.cuda.captures import Captured, captures_on

from .kit import STEPS, Kit

LAUNCHES, ROUNDS = 200, 5
Verdict = tuple[bool, str]


@torch.library.custom_op("dicache_bench::waits", mutates_args=())
def waits(x: Tensor) -> Tensor:
    """A copy, made after a wait for the device, which no capture allows and no graph shows."""
    x.sum().item()
    return x.clone()


@waits.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Waiting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return waits(x)


def recovers(kit: Kit, best: str) -> Verdict:
    """After a capture that fails to end, this model is called, and the next one is captured."""
    model = kit.model()
    model.x_embedder = nn.Sequential(Waiting(), model.x_embedder)
    ours = kit.engine(model, "auto")
    first = kit.agree(ours, STEPS)
    kit.outputs(ours, 1)
    engine, reason = explain(ours).engine, explain(ours).engine_reason
    torch.randn(4, device=kit.device.kind)
    kit.device.settle()
    different = first or kit.agree(kit.engine(kit.model(), best), STEPS)
    found = f"the first on {engine} ({reason}), the second on {best}"
    return not different and engine == "calls", different or found[:300]


@torch.no_grad()
def branch_alone(kit: Kit, engine: str) -> Verdict:
    """E2, E3: a branch between two bodies of one small kernel: right, and what a launch costs device and host."""
    captures = captures_on(torch.device(kit.device.kind))
    flag, count = torch.zeros((), dtype=torch.bool, device="cuda"), torch.zeros(1024, device="cuda")
    with captures.turn():
        captures.warm_up(lambda: (flag.clone(), count.add_(1), count.sub_(1)))
        probe, (reuse,) = captures.capture(lambda: (flag.clone(),))
        deep, _ = captures.capture(lambda: count.add_(1))
        estimate, _ = captures.capture(lambda: count.sub_(1))
        captured = Captured(probe, reuse, deep, estimate)
        branch = captures.branch_on_device if engine == "conditional" else captures.branch_on_host
        launch = branch(captured)
        return _timed(launch, flag, count)


@torch.no_grad()
def native_branch_alone(kit: Kit) -> Verdict:
    """E4: the same with torch's own conditional nodes (2.12 and later), of which it takes two."""
    flag, count = torch.zeros((), dtype=torch.bool, device="cuda"), torch.zeros(1024, device="cuda")
    count.add_(1).sub_(1)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        reuse = flag.clone()
        for wanted, change in ((torch.logical_not(reuse), count.add_), (reuse, count.sub_)):
            graph.begin_capture_to_if_node(wanted)
            change(1)
            graph.end_capture_to_conditional_node()
    return _timed(graph.replay, flag, count)


def _timed(launch: Callable[[], None], flag: Tensor, count: Tensor) -> Verdict:
    right, texts = True, []
    for name, reuse, step in (("deep", False, 1.0), ("reuse", True, -1.0)):
        flag.fill_(reuse)
        count.zero_()
        launch()
        right &= bool((count == step).all())
        times = [_round(launch) for _ in range(ROUNDS)]
        device, host = (median(values) for values in zip(*times, strict=True))
        texts.append(f"{name}: {device:.1f} us on the device, {host:.1f} us on the host")
    return right, "; ".join(texts)


def _round(launch: Callable[[], None]) -> tuple[float, float]:
    """Microseconds a launch: (on the device, on the host)."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        launch()
    host = time.perf_counter() - start
    last.record()
    torch.cuda.synchronize()
    return 1000 * first.elapsed_time(last) / LAUNCHES, 1e6 * host / LAUNCHES


def capture(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    if kit.device.kind != "cuda":
        return
    best = kit.device.best
    for engine in ("conditional", "graphs"):
        yield engine, "E2, E3 a branch alone", lambda e=engine: branch_alone(kit, e)
    if hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node"):
        yield "torch's own conditional nodes", "E4 a branch alone", lambda: native_branch_alone(kit)
    yield best, "a capture that fails harms nothing", lambda: recovers(kit, best)
