"""A gate that tries the estimator on the probe, whose result is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..policy import Setting, SlotSpec, State


@dataclass(frozen=True, slots=True)
class EstimateError:
    """Reuses while the estimator, asked for the probe's result instead, is off by less than a threshold.

    The probe's result is computed on every step, so the error is known. It is taken for that of the deep blocks. It is
    of this step alone and is not added up: many steps in a row may be reused as long as the estimator follows them, and
    a turn is noticed at once. Keeps nothing of its own.

    Our rule, not a published one. The nearest is FBCache's, which compares the probe's residual with the newest
    anchor's.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"

    def slots(self) -> tuple[SlotSpec, ...]:
        return ()

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("threshold", self.threshold),)

    def measure_estimate(self, check: Tensor) -> Tensor:
        return check

    def follow(self, x: Tensor, h: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {}

    def judge(self, error: Tensor, state: State) -> tuple[Tensor, Tensor]:
        within = error < state["threshold"] if self.comparison == "<" else error <= state["threshold"]
        # An infinite error is as little a measure as NaN, whatever the threshold.
        return within & (error < math.inf), error

    def settle(self, compared: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {}
