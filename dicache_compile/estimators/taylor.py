"""The estimator of TaylorSeer (arXiv 2503.06923): a series in the steps since the newest anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .timed import Series, Times
from .weights import Weights, taylor


@dataclass(frozen=True, slots=True)
class Taylor(Series):
    """y = x + sum_i D_i e^i / i! up to `order`, e the time since the newest anchor.

    D_0 is R1. D_(i+1) is the change of D_i since the anchor before, over the time between both (equation 3, and
    `derivative_approximation` of the published code). The series is as published and so not the polynomial through the
    anchors: it is exact on residuals that change linearly, and not on quadratic ones, for any order. `Newton` is.

    `first`: how many first steps the schedule runs deep; before the last of them there are no differences.

    With `base="h"` it is y = h + sum_i D_i e^i / i! of the residuals y - h, as DBCache forecasts: what the probe gives
    is this step's.

    Raises ValueError for an order outside of 0 to 3, `first` below 1, or another base.
    """

    order: int = 1
    first: int = 1
    times: Times = "steps"
    base: Literal["x", "h"] = "x"

    def __post_init__(self) -> None:
        self.check_series()
        self.check_base()

    def at(self, elapsed: Tensor, gaps: list[Tensor]) -> Weights:
        return taylor(elapsed, gaps)
