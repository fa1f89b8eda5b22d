"""The estimator of HiCache (arXiv 2508.16984): TaylorSeer's differences with Hermite polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .timed import Series, Times
from .weights import Number, Weights, series


@dataclass(frozen=True, slots=True)
class Hermite(Series):
    """y = x + R1 + sum_i D_i / i! scale^i H_i(scale e) up to `order`; H_i are the physicists' Hermite polynomials.

    D_i and e as for `Taylor`. `scale` is the paper's sigma, between 0 and 1: it damps the higher orders. With order 1
    the step along D_1 is 2 scale^2 e, half of Taylor's at 0.5. Exact on constant residuals alone, but for
    scale = sqrt(1/2) and order 1, where it is Taylor's.

    Raises ValueError for an order outside of 0 to 3, a scale outside of (0, 1], or `first` below 1.
    """

    order: int = 2
    scale: float = 0.5
    first: int = 1
    times: Times = "steps"

    def __post_init__(self) -> None:
        self.check_series()
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale: expected a number above 0 and up to 1, got {self.scale!r}")

    def at(self, elapsed: Tensor, gaps: list[Tensor]) -> Weights:
        polynomials = hermite(self.scale * elapsed, len(gaps))
        return series(gaps, [p * (self.scale**i / math.factorial(i)) for i, p in enumerate(polynomials)])


def hermite(x: Tensor, order: int) -> list[Number]:
    """H_0 to H_order at x: H_(n+1) = 2 x H_n - 2 n H_(n-1)."""
    found: list[Number] = [1.0]
    for n in range(order):
        found.append(2 * x * found[n] - (2 * n * found[n - 1] if n else 0.0))
    return found
