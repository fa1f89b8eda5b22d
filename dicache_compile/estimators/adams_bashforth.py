"""The estimator of AB-Cache (arXiv 2504.10540): fixed weights, as of an Adams-Bashforth step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rules import Seen, SlotSpec
from .linear import MOST, Linear
from .weights import by_count


@dataclass(frozen=True, slots=True)
class AdamsBashforth(Linear):
    """y = x + sum_j (-1)^(j-1) C(order, j) R_j over the last `order` anchors.

    These are the weights of the polynomial through equally spaced anchors, one gap ahead. Anchors that are spaced
    otherwise, and steps further ahead, get the same weights: `Newton` is the general form. Exact to degree order - 1
    under these conditions.

    Raises ValueError for an order outside of 1 to 4.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MOST:
            raise ValueError(f"order: expected a number of anchors from 1 to {MOST}, got {self.order!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("r", history=self.order if self.order > 1 else 0),)

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        return by_count(seen.anchors, self.order, binomial)


def binomial(count: int) -> list[float | Tensor]:
    """The weights for that many anchors, the newest first."""
    return [float((-1) ** j * math.comb(count, j + 1)) for j in range(count)]
