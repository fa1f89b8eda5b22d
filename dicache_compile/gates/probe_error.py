"""The gate of DiCache (arXiv 2508.17356): how far the probe's output has moved since the last deep step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..kernels import relative_l1
from ..rules import Gate, Seen, SlotSpec
from .threshold import Accumulated


@dataclass(frozen=True, slots=True)
class ProbeError(Accumulated, Gate):
    """Adds up how much h changes from step to step (relative L1) and reuses while the sum is below a threshold.

    The sum starts again at 0 after each deep step. h is compared with the step before, whether that was reused or not.
    """

    threshold: float
    error: Literal["probe", "probe_minus_input"] = "probe"
    comparison: Literal["<", "<="] = "<"

    def slots(self) -> tuple[SlotSpec, ...]:
        tensors = [SlotSpec("h_prev", measured=True)]
        if self.error == "probe_minus_input":
            tensors.append(SlotSpec("x_prev", measured=True))
        return (*tensors, SlotSpec("accumulated", "number", shared=True))

    def measure(self, seen: Seen) -> Tensor:
        moved = relative_l1(seen.h, seen.state["h_prev"])
        if self.error == "probe":
            return moved
        return (moved - relative_l1(seen.x, seen.state["x_prev"])).abs()

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        return {"h_prev": seen.h} if self.error == "probe" else {"h_prev": seen.h, "x_prev": seen.x}
