"""The estimator of FasterCache's guidance (arXiv 2410.19355): one call's result and the difference to it as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.bands import as_grid, check_grid, low_of_picture
from ..rules import GuidedEstimator, KeepingEstimator, Seen, Setting, SlotSpec, partner_result


@dataclass(frozen=True, slots=True)
class GuidanceDifference(GuidedEstimator, KeepingEstimator):
    """y = c + D, where c is what the call of `partner` gave on this step, and D = y - c of the last anchor.

    With `low` and `high` the difference grows from reused step to reused step: its low frequencies by the factor `low`
    and the others by `high`. Both are a number, or one for each step: a step beyond the last takes that one's. The low
    ones lie within `cutoff` of the smaller side's length. The published code has 1.1 and a fifth.

    Bands are those of rows and columns, the last two dimensions of what the model gives. For [B, tokens, channels] give
    the `grid` (rows, columns) of the tokens. Where `low` is `high` there are no bands, and none is needed. Exact where
    the two calls differ by what stays the same, with 1 for both. Streams have the names that `stream` or a pipeline
    gives them.

    Raises TypeError or ValueError for names that are none or equal, factors that are not finite, a cutoff outside of 0
    to 0.5, and a grid that is no two sizes.
    """

    stream: str = "uncond"
    partner: str = "cond"
    low: float | tuple[float, ...] = 1.0
    high: float | tuple[float, ...] = 1.0
    cutoff: float = 0.2
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in (self.stream, self.partner):
            if not isinstance(name, str):
                raise TypeError(f"stream, partner: expected the name of a stream, got {name!r}")
        if not self.stream or not self.partner or self.stream == self.partner:
            raise ValueError(f"stream, partner: expected two names, got {self.stream!r} and {self.partner!r}")
        for name, factors in (("low", self.low), ("high", self.high)):
            numbers = factors if isinstance(factors, tuple) else (factors,)
            if not numbers or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name}: expected a finite number, or one for each step, got {factors!r}")
        if not 0 <= self.cutoff <= 0.5:
            raise ValueError(f"cutoff: expected a number from 0 to 0.5, got {self.cutoff!r}")
        if self.grid is not None:
            check_grid(self.grid, "rows", "columns")

    @property
    def probes(self) -> bool:
        return False

    def slots(self) -> tuple[SlotSpec, ...]:
        grown = (SlotSpec(f"{band}_grown", "number") for band in ("low", "high"))
        return partner_result(), SlotSpec("difference"), *grown

    def settings(self) -> tuple[Setting, ...]:
        return Setting("low", self.low), Setting("high", self.high)

    def estimate(self, seen: Seen) -> Tensor:
        partner, difference = seen.partner.float(), seen.state["difference"].float()
        low, high = self._grown(seen)
        if self.low == self.high:
            return partner + low * difference
        return partner + high * difference + (low - high) * self._low(difference)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        one = torch.ones_like(seen.time)
        return {"difference": seen.y.float() - seen.partner.float(), "low_grown": one, "high_grown": one}

    def keep(self, seen: Seen) -> dict[str, Tensor]:
        low, high = self._grown(seen)
        return {"low_grown": low, "high_grown": high}

    def _grown(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """By how much both bands have grown on this step since the anchor."""
        factors = (("low", self.low), ("high", self.high))
        low, high = (seen.state[f"{band}_grown"] * _of_step(seen, band, given) for band, given in factors)
        return low, high

    def _low(self, difference: Tensor) -> Tensor:
        if self.grid is not None:
            return low_of_picture(as_grid(difference, self.grid), -3, -2, self.cutoff).flatten(-3, -2)
        dimensions = difference.dim()
        if isinstance(dimensions, int) and dimensions < 4:  # which is known when it is tried
            raise ValueError(
                "bands of [B, tokens, channels] need the grid (rows, columns) of the tokens, or low equal to high"
            )
        return low_of_picture(difference, -2, -1, self.cutoff)


def _of_step(seen: Seen, band: str, given: float | tuple[float, ...]) -> Tensor:
    factors = seen.state[band]
    if not isinstance(given, tuple):
        return factors
    return factors.index_select(0, seen.index.clamp(max=len(given) - 1).reshape(1)).reshape(())
