"""Gates that decide after a deep step for the steps to come: AdaCache (arXiv 2411.02397), BWCache (2509.13789)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import relative_l1
from ..rules import LearningGate, Seen, SlotSpec


@dataclass(frozen=True, slots=True)
class Planned(LearningGate):
    """After a deep step looks up how many steps may follow without one, by how much the result changed.

    The change is mean|y - y_1| / mean|y_1|, y_1 the result of the deep step before; with `per_step`, over the number of
    steps between both. `plan` has pairs (bound, reused steps): the first one whose bound is not below the change
    counts, and above the last none is reused. It looks at no block before it decides: `probe_depth=0`.

    AdaCache's codebook {0.03: 12, ...} has the distance to the next deep step: one more than is reused. It and
    BWCache, ((0.15, N // 10),), measure single blocks; this measures the last one's result.

    Raises ValueError for a plan whose bounds do not rise, or that reuses a negative number of steps.
    """

    plan: tuple[tuple[float, int], ...]
    per_step: bool = True

    def __post_init__(self) -> None:
        bounds = [bound for bound, _ in self.plan]
        if not bounds or bounds != sorted(set(bounds)) or not bounds[0] >= 0 or any(math.isnan(one) for one in bounds):
            raise ValueError(f"plan: expected pairs (bound, reused steps) with rising bounds, got {self.plan!r}")
        if any(isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 for _, steps in self.plan):
            raise ValueError(f"plan: expected whole numbers of reused steps from 0 on, got {self.plan!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("y_deep", measured=True), SlotSpec("planned", "number", shared=True)

    def measure(self, seen: Seen) -> Tensor:
        """How many steps were reused since the last deep one."""
        return seen.since.float()

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return seen.error < seen.state["planned"], seen.error

    def learn(self, seen: Seen) -> dict[str, Tensor]:
        change = relative_l1(seen.y, seen.state["y_deep"])
        if self.per_step:
            change = change / (seen.since.float() + 1)
        planned = torch.zeros_like(change)
        for bound, steps in reversed(self.plan):
            planned = torch.where(change <= bound, float(steps), planned)
        return {"y_deep": seen.y, "planned": torch.where(seen.anchors > 0, planned, torch.zeros_like(planned))}
