"""The gate of DiCache (arXiv 2508.17356): how far the probe's output has moved since the last deep step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import relative_l1
from ..policy import Setting, SlotSpec, State


@dataclass(frozen=True, slots=True)
class ProbeError:
    """Adds up how much h changes from step to step (relative L1) and reuses while the sum is below a threshold.

    The sum starts again at 0 after each deep step. h is compared with the step before, whether that was reused or not.
    """

    threshold: float
    error: Literal["probe", "probe_minus_input"] = "probe"
    comparison: Literal["<", "<="] = "<"

    def slots(self) -> tuple[SlotSpec, ...]:
        tensors = [SlotSpec("h_prev", per_stream=True, scalar=False, measured=True)]
        if self.error == "probe_minus_input":
            tensors.append(SlotSpec("x_prev", per_stream=True, scalar=False, measured=True))
        return (*tensors, SlotSpec("accumulated", per_stream=False, scalar=True))

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("threshold", self.threshold),)

    def measure(self, x: Tensor, h: Tensor, state: State) -> Tensor:
        moved = relative_l1(h, state["h_prev"])
        if self.error == "probe":
            return moved
        return (moved - relative_l1(x, state["x_prev"])).abs()

    def follow(self, x: Tensor, h: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {"h_prev": h} if self.error == "probe" else {"h_prev": h, "x_prev": x}

    def judge(self, error: Tensor, state: State) -> tuple[Tensor, Tensor]:
        accumulated = state["accumulated"] + error
        threshold = state["threshold"]
        within = accumulated < threshold if self.comparison == "<" else accumulated <= threshold
        # An infinite error is as little a measure as NaN, whatever the threshold.
        return within & (accumulated < math.inf), accumulated

    def settle(self, compared: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {"accumulated": torch.where(reuse, compared, torch.zeros_like(compared))}
