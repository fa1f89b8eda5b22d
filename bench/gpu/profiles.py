"""Where the time of a reused step goes: its kernels, by PyTorch's profiler."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import STEPS, WARMUP, Run
from .device import Device
from .systems import System

PROFILED = 3  # reused steps
ROWS, WIDTH = 40, 90


@torch.no_grad()
def profile(system: System, run: Run, device: Device) -> str:
    """A table of the kernels of a few reused steps, the longest first. Later timings of the process are slower."""
    system.begin()
    latents: Tensor = run.latents
    profiler = torch.profiler.profile(activities=device.profiled())
    first = WARMUP + 1
    for step in range(min(STEPS, first + PROFILED)):
        if step == first:
            device.synchronize()
            profiler.start()
        system.before(step)
        latents = run.advance(step, latents, system.call(run.arguments(step, latents)))
    device.synchronize()
    profiler.stop()
    by = "self_cpu_time_total" if device.kind == "cpu" else "self_device_time_total"
    averages = profiler.key_averages()
    table: str = averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=WIDTH)
    return table
