"""The estimator of FoCa (arXiv 2508.16211): a forecast by BDF2, corrected by Heun's rule, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import Estimator, Seen, SlotSpec, anchor_steps


@dataclass(frozen=True, slots=True)
class FoCa(Estimator):
    """y = x + R1 + (k - 1 + 2^-k) (R1 - R2) / d + (1 - 2^-k) (R1 - P) on the k-th reused step since R1.

    d is the number of steps between R1 and R2, and P what the residual was one step before R1: its estimate, or R2 if
    that step ran deep. This is the rolling recursion F <- F + (s + s_k) / 2 of equations 6 to 8, where s is the slope
    between the anchors and s_k that of the last step, solved for F; so three tensors suffice. Exact on residuals that
    change linearly. Other codes have other rules under this name.
    """

    @property
    def probes(self) -> bool:
        return False

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("r", history=2), SlotSpec("before"), anchor_steps(2)

    def estimate(self, seen: Seen) -> Tensor:
        return seen.x.float() + self._forecast(seen, seen.since.float() + 1)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        since = seen.since.float()
        # With no reused step between, the step before this one is the anchor itself.
        forecast = torch.where(since > 0, self._forecast(seen, since), seen.state["r1"].float())
        return {"r": seen.y.float() - seen.x.float(), "before": forecast}

    def _forecast(self, seen: Seen, k: Tensor) -> Tensor:
        """The residual k steps after the newest anchor: float32, of x's shape."""
        newest, older, before = (seen.state[name].float() for name in ("r1", "r2", "before"))
        halved = torch.exp2(-k)
        steps = seen.steps
        along = (k - 1 + halved) / (steps[0] - steps[1])
        forecast = newest + along * (newest - older) + (1 - halved) * (newest - before)
        # What does not exist yet may hold anything, and is masked.
        return torch.where(seen.anchors > 1, forecast, newest)
