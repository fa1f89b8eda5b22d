"""DCTA on a curve: what two anchors leave unsaid of a trajectory that bends, a third one tells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import clipped_ratio, relative_l1
from ..policy import SlotSpec, State
from .dcta import DCTA

# Of two neighbouring gaps, older over newer: one that is longer or shorter says nothing of a bend.
GAP_RATIO = (0.25, 4.0)


@dataclass(frozen=True, slots=True)
class SecondOrderDCTA(DCTA):
    """y = x + R2 + gamma (R1 - R2) + damping gamma (gamma - 1) B, in the terms of `DCTA`.

    B is Newton's second divided difference of R1, R2, R3 at 1, 0, -g, where g = mean|P2 - P3| / mean|P1 - P2|: with
    damping 1 the parabola through the last three anchors, with 0 the line through two. Half of the bend is a hedge
    between both: a second difference doubles the error of what it is taken of. With two anchors it is `DCTA`.

    Our rule, not a published one. TaylorSeer (arXiv 2503.06923) takes its differences over steps, not over the
    trajectory; HiCache (arXiv 2508.16984) damps, too.
    """

    damping: float = 0.5

    def slots(self) -> tuple[SlotSpec, ...]:
        return (
            SlotSpec("r", per_stream=True, scalar=False, history=3),
            SlotSpec("p", per_stream=True, scalar=False, history=3, measured=True),
            SlotSpec("anchor_gap", per_stream=True, scalar=True),
            SlotSpec("gap_ratio", per_stream=True, scalar=True),
        )

    def estimate(self, x: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        return x.float() + self._curve("r", gamma, anchors, state)

    def check(self, x: Tensor, h: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        return relative_l1(self._curve("p", gamma, anchors, state), self._place(x, h))

    def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
        new = DCTA.anchor(self, x, h, y, state)
        return {**new, "gap_ratio": clipped_ratio(state["anchor_gap"], new["anchor_gap"], *GAP_RATIO)}

    def _curve(self, name: str, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        """The anchors' residuals or probe residuals, where gamma is on their curve: float32."""
        newest, older, oldest = (state[f"{name}{age}"].float() for age in (1, 2, 3))
        ratio, slope = state["gap_ratio"], newest - older
        bend = (slope - (older - oldest) / ratio) / (1 + ratio)
        line = older + gamma * slope
        curve = line + self.damping * gamma * (gamma - 1) * bend
        # What does not exist yet may hold anything, and is masked.
        return torch.where(anchors > 2, curve, torch.where(anchors > 1, line, newest))
