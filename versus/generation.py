"""One generation of one system, call by call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .system import Installed
from .workload import STEPS, Workload


@dataclass(frozen=True, slots=True)
class Generation:
    """What one prompt and seed gave."""

    seconds: float  # the whole loop, sampler and guidance included
    calls: tuple[float, ...]  # seconds of each call of the model, in order
    deep: tuple[bool, ...] | None  # of each call, whether its deep blocks ran; None: the system has no such thing
    pixels: Tensor  # [3, (frames,) H, W] in [-1, 1]


class _Caller:
    """Stands where the sampler expects the model, and knows which call of which step it is."""

    def __init__(self, installed: Installed, streams: Sequence[str]) -> None:
        self._installed, self._streams = installed, streams
        self.seconds: list[float] = []

    def __call__(self, **inputs: Any) -> Any:
        step, place = divmod(len(self.seconds), len(self._streams))
        start = time.perf_counter()
        result = self._installed.call(self._streams[place], step, inputs)
        self.seconds.append(time.perf_counter() - start)
        return result


@torch.no_grad()
def generate(installed: Installed, workload: Workload, seed: int) -> Generation:
    """Samples the seed's prompt, from the seed's noise."""
    installed.begin()
    caller = _Caller(installed, workload.streams)
    steps = STEPS if installed.steps is None else installed.steps
    start = time.perf_counter()
    pixels = workload.sample(caller, [workload.prompt(seed)], seed, steps)
    seconds = time.perf_counter() - start
    deep = installed.deep()
    return Generation(seconds, tuple(caller.seconds), None if deep is None else tuple(deep), pixels[0])
