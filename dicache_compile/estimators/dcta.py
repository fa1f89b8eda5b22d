"""The estimator of DiCache (arXiv 2508.17356): dynamic cache trajectory alignment over two anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import clipped_ratio, extrapolate, mean_abs_difference, relative_l1
from ..policy import Setting, SlotSpec, State


@dataclass(frozen=True, slots=True)
class DCTA:
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

    def slots(self) -> tuple[SlotSpec, ...]:
        tensors = (
            SlotSpec("r", per_stream=True, scalar=False, history=2),
            SlotSpec("p", per_stream=True, scalar=False, history=2, measured=True),
        )
        # mean|P1 - P2| changes on deep steps only, so it is kept and not computed on every step.
        return (*tensors, SlotSpec("anchor_gap", per_stream=True, scalar=True))

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("gamma_range", self.gamma_range),)

    def weigh(self, x: Tensor, h: Tensor, anchors: Tensor, state: State) -> Tensor:
        since_older, bounds = mean_abs_difference(self._place(x, h), state["p2"]), state["gamma_range"]
        ratio = clipped_ratio(since_older, state["anchor_gap"], bounds[0], bounds[1])
        return torch.where(anchors > 1, ratio, torch.full_like(ratio, float("nan")))

    def estimate(self, x: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        return extrapolate(x, state["r1"], state["r2"], gamma, anchors > 1)

    def check(self, x: Tensor, h: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        """The relative L1 error of P2 + gamma (P1 - P2), or of P1, as an estimate of p."""
        p = self._place(x, h)
        return relative_l1(extrapolate(torch.zeros_like(p), state["p1"], state["p2"], gamma, anchors > 1), p)

    def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
        # Rounded as it is stored, so that the gap is the distance of the anchors that later steps will see.
        p = self._place(x, h).type_as(state["p1"])
        return {"r": y.float() - x.float(), "p": p, "anchor_gap": mean_abs_difference(p, state["p1"])}

    def _place(self, x: Tensor, h: Tensor) -> Tensor:
        """Where a step stands on the trajectory: p, float32."""
        return x.float() if self.along == "input" else h.float() - x.float()
