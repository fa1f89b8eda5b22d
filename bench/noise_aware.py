"""DCTA whose estimates have the least expected error of their own where anchors are noisy: measured, and not better.

It is here and not in the package, because pictures do not gain by it: see docs/low-precision.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dicache_compile.estimators import DCTA
from dicache_compile.kernels import mean_abs_difference
from dicache_compile.rules import Seen, SlotSpec


@dataclass(frozen=True, slots=True)
class NoiseAwareDCTA(DCTA):
    """`DCTA` with gamma' = (1 - w) gamma + w / 2, where w = 2 s / mean (R1 - R2)^2 and s is the anchors' noise.

    Each residual is a true one plus noise of mean square s, independent from anchor to anchor; the true one moves by D
    between two anchors, and by g D, g = gamma - 1, from the newest to this step. R1 + k (R1 - R2) then has the mean
    squared error s ((1 + k)^2 + k^2) + (k - g)^2 mean D^2. It is least at k = (g mean D^2 - s) / (mean D^2 + 2 s), and
    mean (R1 - R2)^2 is mean D^2 + 2 s: this is gamma' - 1. All noise, w = 1, gives the mean of both anchors.

    The noise is measured on deep steps. There the best k is known, <R0 - R1, R1 - R2> / |R1 - R2|^2, and it is short of
    g by (2 g + 1) s / mean (R1 - R2)^2. A bend of the way is short, too; so the smaller of the last two counts, as a
    share of mean R0^2, and with one alone, nothing is damped.
    """

    def slots(self) -> tuple[SlotSpec, ...]:
        return (*DCTA.slots(self), SlotSpec("noise", "number", history=2), SlotSpec("apart", "number"))

    def aid(self, seen: Seen) -> Tensor:
        """Gamma', float32, shape (); NaN with one anchor."""
        gamma, state = DCTA.aid(self, seen), seen.state
        share = (2 * torch.minimum(state["noise1"], state["noise2"]) / state["apart"]).clamp(0, 1)
        # Of two noises the older is of the fourth anchor. Equal anchors tell nothing of noise.
        share = torch.where((seen.anchors > 3) & (share == share), share, torch.zeros_like(share))
        return gamma - share * (gamma - 0.5)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        new, state = DCTA.anchor(self, seen), seen.state
        newest, older, oldest = new["r"].type_as(state["r1"]).float(), state["r1"].float(), state["r2"].float()
        step, before, size = newest - older, older - oldest, newest.square().mean()
        g = (mean_abs_difference(new["p"], state["p2"]) / state["anchor_gap"] - 1).clamp(min=0)
        noise = (g * before.square().mean() - (step * before).mean()) / (2 * g + 1)
        return {**new, "noise": noise.clamp(min=0) / size, "apart": step.square().mean() / size}
