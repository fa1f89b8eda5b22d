"""A gate that tries the estimator on the probe: what it gets wrong there says what it would get wrong behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..policy import SlotSpec, State


@dataclass(frozen=True, slots=True)
class EstimateError:
    """Reuses while the estimator's error on the probe, whose result is known, stays below a threshold.

    The error is of this step alone, against the anchors, and is not added up: a trajectory that the estimator follows
    may be reused for long, one that turns is noticed at once. It keeps nothing of its own. Our rule, not a published
    one; the nearest is FBCache's, which compares the probe's residual with the newest anchor's.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"

    def slots(self) -> tuple[SlotSpec, ...]:
        return ()

    def measure_estimate(self, check: Tensor) -> Tensor:
        return check

    def follow(self, x: Tensor, h: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {}

    def judge(self, error: Tensor, state: State) -> tuple[Tensor, Tensor]:
        within = error < self.threshold if self.comparison == "<" else error <= self.threshold
        # An infinite error is as little a measure as NaN, whatever the threshold.
        return within & (error < math.inf), error

    def settle(self, compared: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {}
