"""The estimator of DiCache (arXiv 2508.17356): dynamic cache trajectory alignment over two anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import clipped_ratio, extrapolate, mean_abs_difference, relative_l1
from ..rules import Estimator, Seen, Setting, SlotSpec


@dataclass(frozen=True, slots=True)
class DCTA(Estimator):
    """y = x + R2 + gamma (R1 - R2), gamma = clip(mean|p - P2| / mean|P1 - P2|); with one anchor y = x + R1.

    R1, P1 are the residual y - x and the probe residual h - x of the newest deep step, R2, P2 those of the one before.
    With `along="input"`, our rule for a trunk without a probe, p is x itself: gamma tells how far the input has moved.

    Raises ValueError for another `along`.
    """

    gamma_range: tuple[float, float]
    along: Literal["probe", "input"] = "probe"

    def __post_init__(self) -> None:
        if self.along not in ("probe", "input"):
            raise ValueError(f"along: expected 'probe' or 'input', got {self.along!r}")

    @property
    def probes(self) -> bool:
        return self.along == "probe"

    def slots(self) -> tuple[SlotSpec, ...]:
        tensors = SlotSpec("r", history=2), SlotSpec("p", history=2, measured=True)
        # mean|P1 - P2| changes on deep steps only, so it is kept and not computed on every step.
        return (*tensors, SlotSpec("anchor_gap", "number"))

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("gamma_range", self.gamma_range),)

    def aid(self, seen: Seen) -> Tensor:
        """Gamma: float32, shape (); NaN with one anchor."""
        since_older, bounds = mean_abs_difference(self._place(seen), seen.state["p2"]), seen.state["gamma_range"]
        ratio = clipped_ratio(since_older, seen.state["anchor_gap"], bounds[0], bounds[1])
        return torch.where(seen.anchors > 1, ratio, torch.full_like(ratio, float("nan")))

    def estimate(self, seen: Seen) -> Tensor:
        return extrapolate(seen.x, seen.state["r1"], seen.state["r2"], seen.aid, seen.anchors > 1)

    def check(self, seen: Seen) -> Tensor:
        """The relative L1 error of P2 + gamma (P1 - P2), or of P1, as an estimate of p."""
        p, state = self._place(seen), seen.state
        return relative_l1(extrapolate(torch.zeros_like(p), state["p1"], state["p2"], seen.aid, seen.anchors > 1), p)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        # Rounded as it is stored, so that the gap is the distance of the anchors that later steps will see.
        newest = seen.state["p1"]
        p = self._place(seen).type_as(newest)
        return {"r": seen.y.float() - seen.x.float(), "p": p, "anchor_gap": mean_abs_difference(p, newest)}

    def _place(self, seen: Seen) -> Tensor:
        """Where a step stands on the trajectory: p, float32."""
        return seen.x.float() if self.along == "input" else seen.h.float() - seen.x.float()
