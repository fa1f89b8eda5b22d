"""One system's generations: how long they and their steps take, what they need, and how often the host waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from .cases import DEEP, STEPS, Run
from .device import Device
from .systems import System

ENOUGH = 3  # steps of a system whose steps are all alike, where time matters more than the number


@dataclass(frozen=True, slots=True)
class Generation:
    """One denoising run of one system."""

    seconds: float
    steps: list[float]  # milliseconds on the device, one for each step
    host: list[float]  # microseconds until the call returned
    finite: bool
    first: float  # seconds until the first step was done


def steps_for(system: System) -> int:
    """A cached system's steps only mean something in a whole generation."""
    return STEPS if system.kind == "cached" else ENOUGH


@torch.no_grad()
def generate(
    system: System, run: Run, device: Device, steps: int = STEPS, idle: bool = False, deep: System | None = None
) -> Generation:
    """Runs that many steps. `idle`: each step is called when the device has nothing left to do, for the host's time.

    `deep` runs the deep steps in the system's place. A device that has worked hard is slower for a while, so a reused
    step can only be compared with one that comes after the same deep ones.
    """
    system.begin()
    latents: Tensor = run.latents
    host, first = [], 0.0
    marks = [(device.mark(), device.mark()) for _ in range(steps)]
    device.synchronize()
    start = time.perf_counter()
    for step, (before, after) in enumerate(marks):
        arguments = run.arguments(step, latents)
        if idle:
            device.synchronize()
        running = deep if deep is not None and DEEP[step] else system
        running.before(step)
        before.record()
        called = time.perf_counter()
        output = running.call(arguments)
        host.append(1e6 * (time.perf_counter() - called))
        after.record()
        latents = run.advance(step, latents, output)
        if step == 0 and idle:
            device.synchronize()
            first = time.perf_counter() - start
    device.synchronize()
    seconds = time.perf_counter() - start
    taken = [before.elapsed_time(after) for before, after in marks]
    return Generation(seconds, taken, host, bool(torch.isfinite(latents).all()), first)


@torch.no_grad()
def count_syncs(system: System, run: Run, device: Device) -> float:
    """Waits of the host for each step, over deep and reused ones, beyond those that the measuring makes."""
    system.begin()
    latents: Tensor = run.latents
    steps = steps_for(system)
    with device.counting_syncs() as count:
        for step in range(steps):
            system.before(step)
            latents = run.advance(step, latents, system.call(run.arguments(step, latents)))
    return count.value / steps


def by_kind(values: list[float], system: System) -> dict[str, float]:
    """The medians of a generation's deep and of its reused steps, as far as they are the system's own."""
    if system.kind == "full" or len(values) < STEPS:
        return {"deep" if system.kind == "full" else "reused": median(values)}
    deep = [value for value, is_deep in zip(values, DEEP, strict=True) if is_deep]
    reused = [value for value, is_deep in zip(values, DEEP, strict=True) if not is_deep]
    return (
        {"reused": median(reused)} if system.kind == "truncated" else {"deep": median(deep), "reused": median(reused)}
    )
