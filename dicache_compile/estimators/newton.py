"""The polynomial through the last anchors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .timed import Timed, Times
from .weights import Weights, lagrange


@dataclass(frozen=True, slots=True)
class Newton(Timed):
    """y = x + the value at this step of the polynomial of degree `order` through the last residuals.

    Exact where residuals change by such a polynomial, whatever the times between anchors (Lagrange's formula; Newton's
    gives the same). With equal gaps and a step one gap ahead it is the Adams-Bashforth form of AB-Cache
    (arXiv 2504.10540). Its weights grow fast, and with them what noise the anchors have: keep the order low.

    Raises ValueError for an order outside of 0 to 3.
    """

    order: int = 2
    times: Times = "steps"

    def __post_init__(self) -> None:
        self.check_times()

    def reach(self) -> int:
        return self.order + 1

    def at(self, elapsed: Tensor, gaps: list[Tensor]) -> Weights:
        return lagrange(elapsed, gaps)
