"""The estimator of FreqCa (arXiv 2510.08669): low frequencies among the tokens are reused, high ones forecast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import combination
from ..kernels.bands import check_grid, low_of_grid, low_of_sequence
from ..rules import Seen
from .hermite import Hermite


@dataclass(frozen=True, slots=True)
class BandSplit(Hermite):
    """y = x + R1 + (I - L) (F - R1), where F is the forecast of `Hermite`, and L takes the low band of the tokens.

    With a `grid` of (rows, columns) the tokens are a picture, and the low band has the cosines whose radius is up to
    `cutoff` of the largest (the paper's choice for FLUX). Without one they are a sequence, and it has the frequencies
    up to `cutoff` of the highest (its choice for Qwen-Image). A grid fits one size of picture.

    Tokens are the dimension before the last. Exact on constant residuals alone; where scale = sqrt(1/2) and order 1
    also on ones whose high band changes linearly.

    Raises ValueError as `Hermite` does, for a cutoff outside of 0 to 1, and for a grid that is no two sizes.
    """

    scale: float = 0.71
    cutoff: float = 0.1
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        Hermite.__post_init__(self)
        if not 0 <= self.cutoff <= 1:
            raise ValueError(f"cutoff: expected a number from 0 to 1, got {self.cutoff!r}")
        if self.grid is not None:
            check_grid(self.grid, "rows", "columns")

    def estimate(self, seen: Seen) -> Tensor:
        newest, *others = self.weights(seen)
        residuals = [seen.state[name] for name in self.terms()]
        change = combination(torch.zeros_like(residuals[0]), residuals, [newest - 1, *others])
        return combination(seen.x, residuals[:1], [1.0]) + (change - self._low(change))

    def _low(self, change: Tensor) -> Tensor:
        if self.grid is None:
            return low_of_sequence(change, self.cutoff)
        return low_of_grid(change, self.grid, self.cutoff)
