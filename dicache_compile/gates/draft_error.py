"""The gate of SpeCa (arXiv 2509.11628): a draft is used while a block, run for real, agrees with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import Decider, Seen
from .threshold import Threshold


@dataclass(frozen=True, slots=True)
class DraftError(Threshold, Decider):
    """Reuses while the estimate, tried on the probe, is off by no more than a threshold that falls with the steps.

    It is threshold decay^((step + 1) / num_steps), and `floor` at least. The first `least` steps after a deep one are
    reused in any case. The code tries its draft on the last block of a reused step, and goes by that on the next one;
    the probe is known before the step itself is decided.

    Raises ValueError for less than one step, or what is below 0.
    """

    threshold: float
    num_steps: int
    decay: float = 0.01
    floor: float = 0.01
    least: int = 3

    def __post_init__(self) -> None:
        for name, lowest in (("num_steps", 1), ("least", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}: expected a whole number from {lowest} on, got {value!r}")
        for name in ("decay", "floor"):
            if not 0 <= (number := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0 on, got {number!r}")

    def measure_estimate(self, seen: Seen) -> Tensor:
        return seen.check

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        progress = (seen.index.float() + 1) / self.num_steps
        limit = (seen.state["threshold"] * self.decay**progress).clamp(min=self.floor)
        early = (seen.since < self.least) & torch.isfinite(seen.error)
        return early | (seen.error <= limit), seen.error
