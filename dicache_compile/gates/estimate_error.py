"""A gate that tries the estimator on the probe, whose result is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..rules import Decider, Seen
from .threshold import Threshold


@dataclass(frozen=True, slots=True)
class EstimateError(Threshold, Decider):
    """Reuses while the estimator, asked for the probe's result instead, is off by less than a threshold.

    The probe's result is computed on every step, so the error is known. It is taken for that of the deep blocks. It is
    of this step alone and is not added up: many steps in a row may be reused as long as the estimator follows them, and
    a turn is noticed at once. Keeps nothing of its own.

    Our rule, not a published one. The nearest is FBCache's, which compares the probe's residual with the newest
    anchor's.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"

    def measure_estimate(self, seen: Seen) -> Tensor:
        return seen.check

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return self.within(seen, seen.error), seen.error
