"""DCTA on a curve: a third anchor tells how the way through the last two bends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import clipped_ratio, relative_l1, second_difference
from ..rules import Seen, SlotSpec
from .dcta import DCTA

# Of two neighbouring gaps, older over newer: one that is longer or shorter says nothing of a bend.
GAP_RATIO = (0.25, 4.0)


@dataclass(frozen=True, slots=True)
class SecondOrderDCTA(DCTA):
    """y = x + R2 + gamma (R1 - R2) + gamma (gamma - 1) B / (1 + (damping e)^2), in the terms of `DCTA`.

    B is Newton's second divided difference of R1, R2, R3 at 1, 0, -g, where g = mean|P2 - P3| / mean|P1 - P2|.
    e = max(gamma - 1, 0) / (1 + g) says how far the step lies past the newest anchor. Its unit is the length that the
    three anchors span. With damping 0 the estimate is on their parabola; with more it is nearer to the line through
    two. With two anchors it is that of `DCTA`.

    The factor is a Wiener filter's, signal^2 / (signal^2 + noise^2): what three anchors do not tell, the third
    difference, grows by e over what they do. With 2, the default, both are as large half a span out.

    Our rule, not a published one. TaylorSeer (arXiv 2503.06923) takes its differences over steps, not over the
    trajectory; HiCache (arXiv 2508.16984) damps, too, by constants.

    Raises ValueError for a damping that is below 0 or not finite.
    """

    damping: float = 2.0

    def __post_init__(self) -> None:
        DCTA.__post_init__(self)
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"damping: expected a finite number from 0 on, got {self.damping!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return (
            SlotSpec("r", history=3),
            SlotSpec("p", history=3, measured=True),
            SlotSpec("anchor_gap", "number"),
            SlotSpec("gap_ratio", "number"),
        )

    def estimate(self, seen: Seen) -> Tensor:
        return seen.x.float() + self._curve("r", seen)

    def check(self, seen: Seen) -> Tensor:
        return relative_l1(self._curve("p", seen), self._place(seen))

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        new = DCTA.anchor(self, seen)
        return {**new, "gap_ratio": clipped_ratio(seen.state["anchor_gap"], new["anchor_gap"], *GAP_RATIO)}

    def _curve(self, name: str, seen: Seen) -> Tensor:
        """The anchors' residuals or probe residuals, where gamma is on their curve: float32."""
        newest, older, oldest = (seen.state[f"{name}{age}"].float() for age in (1, 2, 3))
        gamma, ratio = seen.aid, seen.state["gap_ratio"]
        bend = second_difference(newest, older, oldest, ratio)
        line = older + gamma * (newest - older)
        beyond = (gamma - 1).clamp(min=0) / (1 + ratio)
        curve = line + gamma * (gamma - 1) / (1 + (self.damping * beyond).square()) * bend
        # What does not exist yet may hold anything, and is masked.
        return torch.where(seen.anchors > 2, curve, torch.where(seen.anchors > 1, line, newest))
