"""The gate of FirstBlockCache: how far the probe's residual has moved from that of the last deep step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import pooled, relative_l1
from ..rules import Gate, Seen, SlotSpec
from .threshold import Threshold


@dataclass(frozen=True, slots=True)
class ResidualChange(Threshold, Gate):
    """Reuses while mean|p - P1| / mean|P1| is below a threshold: p = h - x, P1 that of the last deep step.

    The distance is not added up: it is that between two places, not the length of the way. FirstBlockCache (of
    ParaAttention, and in diffusers) and DBCache (cache-dit) compare so. With `pool` above 1, as H2-Cache (arXiv
    2510.27171) does, both are first averaged over as many neighbouring tokens; a rest that does not fill a group is
    left out. With `follows` a step is also reused where the rule before reused on it.

    Raises ValueError for a `pool` below 1.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"
    pool: int = 1
    follows: bool = False

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool: expected a number of tokens from 1 on, got {self.pool!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("p_deep", measured=True),)

    def measure(self, seen: Seen) -> Tensor:
        residual = seen.h.float() - seen.x.float()
        return relative_l1(pooled(residual, self.pool), pooled(seen.state["p_deep"].float(), self.pool))

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        kept = seen.state["p_deep"]
        return {"p_deep": torch.where(seen.reused, kept, (seen.h.float() - seen.x.float()).type_as(kept))}

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        within = self.within(seen, seen.error)
        return (within | seen.before) if self.follows else within, seen.error
