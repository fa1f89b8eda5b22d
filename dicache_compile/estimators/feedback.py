"""DCTA that makes up for its errors: a deep step shows what the reused steps before it should have been."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import clipped_ratio, second_difference
from ..rules import Seen, SlotSpec
from .dcta import DCTA
from .second_order import GAP_RATIO


@dataclass(frozen=True, slots=True)
class FeedbackDCTA(DCTA):
    """y = x + R2 + gamma (R1 - R2) + share (1 - share)^(k - 1) U on the k-th reused step since R1, in `DCTA`'s terms.

    U is the sum of errors that has not been made up for yet. On a deep step with residual R0 it grows by the errors of
    the n reused steps since R1, which are what they should have been less what they were. In sum that is

        n/2 (R0 - R1) - n (n + 2) / (6 (n + 1)) B - sum_j (gamma_j - 1) (R1 - R2)

    "Should have been" is read from the parabola through R0, R1, R2 at 1, 0, -|P1 - P2| / |P0 - P1|, at n even places
    between the first two: between anchors a residual is known far better than beyond them. The first two terms are its
    sum less n R1. B is Newton's second divided difference, 0 with two anchors.

    A sampler adds up its model's outputs. So adding an error to a later output puts the steps after it near to where
    they would be without the error, and errors do not add up over a generation. With share 1 the next reused step adds
    all of it. Where a sampler's steps are of different lengths, the amount is off by the ratio of those lengths.

    Our rule, not a published one for caches. As error feedback it is known from compressed gradients (Seide et al.,
    Interspeech 2014; arXiv 1901.09847) and from sigma-delta modulators.

    Raises ValueError for a share outside of (0, 1].
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        DCTA.__post_init__(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a number above 0 and up to 1, got {self.share!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        # "reached": the sum of gamma - 1 over the steps that were reused since R1.
        return (*DCTA.slots(self), SlotSpec("owed"), SlotSpec("reached", "number"))

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        reached = seen.state["reached"]
        # With one anchor gamma is NaN, and the estimate stays at it.
        beyond = torch.where(seen.anchors > 1, seen.aid - 1, torch.zeros_like(seen.aid))
        return {"reached": torch.where(seen.reused, reached + beyond, reached)}

    def estimate(self, seen: Seen) -> Tensor:
        given = self.share * (1 - self.share) ** seen.since.float()
        return DCTA.estimate(self, seen) + given * seen.state["owed"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        new, state, reused = DCTA.anchor(self, seen), seen.state, seen.since.float()
        newest, older, oldest = new["r"], state["r1"].float(), state["r2"].float()
        ratio = clipped_ratio(state["anchor_gap"], new["anchor_gap"], *GAP_RATIO)
        bend = second_difference(newest, older, oldest, ratio)
        line = reused / 2 * (newest - older)
        curve = line - reused * (reused + 2) / (6 * (reused + 1)) * bend - state["reached"] * (older - oldest)
        left = (1 - self.share) ** reused * state["owed"].float()
        # What does not exist yet may hold anything, and is masked.
        none = torch.zeros_like(line)
        owed = torch.where(seen.anchors > 1, curve + left, torch.where(seen.anchors > 0, line, none))
        return {**new, "owed": owed, "reached": torch.zeros_like(reused)}
