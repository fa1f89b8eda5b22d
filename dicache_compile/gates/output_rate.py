"""The gate of EasyCache (arXiv 2507.02860): the input's change, times how much the output changed for it last time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import mean_abs_difference
from ..rules import LearningGate, Seen, SlotSpec
from .threshold import Accumulated


@dataclass(frozen=True, slots=True)
class OutputRate(Accumulated, LearningGate):
    """Adds up k mean|x - x_prev| / mean|y_1| from step to step and reuses while the sum is below a threshold.

    y_1 is the result of the last deep step, and k = mean|y_1 - y_2| / mean|x_1 - x_2| is of the last two: how much the
    output changes for a change of the input. Until there are two, steps run deep. The paper has it for the whole model,
    from latents to velocity: `sites="model"`. It looks at no block: `probe_depth=0`.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"

    def slots(self) -> tuple[SlotSpec, ...]:
        tensors = (SlotSpec(name, measured=True) for name in ("x_prev", "x_deep", "y_deep"))
        return (*tensors, *(SlotSpec(name, "number", shared=True) for name in ("accumulated", "rate")))

    def measure(self, seen: Seen) -> Tensor:
        return mean_abs_difference(seen.x, seen.state["x_prev"])

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        return {"x_prev": seen.x}

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        accumulated = seen.state["accumulated"] + seen.state["rate"] * seen.error
        return self.within(seen, accumulated) & (seen.anchors > 1), accumulated

    def learn(self, seen: Seen) -> dict[str, Tensor]:
        state = seen.state
        rate = mean_abs_difference(seen.y, state["y_deep"]) / mean_abs_difference(seen.x, state["x_deep"])
        return {
            "x_deep": seen.x,
            "y_deep": seen.y,
            "rate": torch.where(seen.anchors > 0, rate / seen.y.float().abs().mean(), torch.zeros_like(rate)),
        }
