"""The estimator of most caches (TeaCache, arXiv 2411.19108; MagCache, arXiv 2506.09045): the last residual again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy import SlotSpec, State


@dataclass(frozen=True, slots=True)
class Reuse:
    """y = x + R1, where R1 is the residual y - x of the newest deep step. Measures nothing.

    Keeps one tensor a stream. The gate keeps its own, also on a schedule: with the default gate it is two together.
    """

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("r", per_stream=True, scalar=False),)

    def weigh(self, x: Tensor, h: Tensor, anchors: Tensor, state: State) -> Tensor:
        return torch.full_like(anchors, float("nan"), dtype=torch.float32)

    def estimate(self, x: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        return x.float() + state["r"].float()

    def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
        return {"r": y.float() - x.float()}
