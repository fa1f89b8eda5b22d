"""The estimator of FasterCache (arXiv 2410.19355): the last step's change goes on, by a share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import KeepingEstimator, Seen, Setting, SlotSpec
from .recent import ago, counted, kept, recent, steps_before


@dataclass(frozen=True, slots=True)
class Extrapolated(KeepingEstimator):
    """y = x + S1 + w (S1 - S2), where S1 and S2 are the residuals of the last two steps, estimated ones too.

    The paper has it for attentions, where x is 0, with w rising from 0 to 1; the code has 0.5. `weight` is w, or has
    one for each step: a step beyond the last takes that one's. Exact to degree 1 where w is 1, and else on constant
    residuals alone. After a single step it is that step's residual.

    Raises ValueError for a weight that is not finite, or none.
    """

    weight: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        if not weights or not all(map(math.isfinite, weights)):
            raise ValueError(f"weight: expected a finite number, or one for each step, got {self.weight!r}")

    @property
    def probes(self) -> bool:
        return False

    def slots(self) -> tuple[SlotSpec, ...]:
        return *recent("s", 2), counted()

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("weight", self.weight),)

    def estimate(self, seen: Seen) -> Tensor:
        newest, older = (ago(seen, "s", 2, age) for age in (1, 2))
        weight = seen.state["weight"]
        if isinstance(self.weight, tuple):
            weight = weight.index_select(0, seen.index.clamp(max=len(self.weight) - 1).reshape(1)).reshape(())
        change = weight * (newest - older)
        # What does not exist yet may hold anything, and is masked.
        return seen.x.float() + newest + torch.where(steps_before(seen) > 1, change, torch.zeros_like(change))

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return kept(seen, 2, s=seen.y.float() - seen.x.float())

    def keep(self, seen: Seen) -> dict[str, Tensor]:
        return self.anchor(seen)
