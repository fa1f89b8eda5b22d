"""The gate of TeaCache (arXiv 2411.19108): a polynomial of how much the first block's modulated input changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..kernels import relative_l1
from ..rules import Gate, Seen, SlotSpec
from .threshold import Accumulated


@dataclass(frozen=True, slots=True)
class PolynomialChange(Accumulated, Gate):
    """Adds up p(mean|m - m_prev| / mean|m_prev|) from step to step and reuses while the sum is below a threshold.

    m is what the first block gives to its first linear: its input, normalised and modulated by the timestep. No more of
    the block runs for it. `coefficients` are those of p, the highest power first: they are fitted to how much the
    model's output changes, for each model (`published("teacache")` has the paper's). (1, 0) is the change itself. A
    polynomial may be above the threshold where nothing has changed at all.

    Needs `probe_depth=0`. Raises ValueError for no coefficient, or one that is not finite.
    """

    coefficients: tuple[float, ...]
    threshold: float
    comparison: Literal["<", "<="] = "<"

    def __post_init__(self) -> None:
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients: expected finite numbers, one at least, got {self.coefficients!r}")

    @property
    def looks_at(self) -> Literal["probe", "modulated"]:
        return "modulated"

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("m_prev", measured=True), SlotSpec("accumulated", "number", shared=True)

    def measure(self, seen: Seen) -> Tensor:
        change = relative_l1(seen.h, seen.state["m_prev"])
        value = change * 0 + self.coefficients[0]
        for coefficient in self.coefficients[1:]:  # Horner's rule
            value = value * change + coefficient
        return value

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        return {"m_prev": seen.h}
