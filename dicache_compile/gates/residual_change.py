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
    ParaAttention, and in diffusers) and DBCache (cache-dit) compare so. With a `pool` both are first averaged over as
    many neighbouring tokens, or over (tokens, channels), as H2-Cache (arXiv 2510.27171) does with squares; a rest that
    does not fill a group is left out. With `follows` a step is also reused where the rule before reused on it, and
    with `first_alone` the text is not measured where blocks carry it beside the picture.

    Raises ValueError for a `pool` below 1, or of more than two numbers.
    """

    threshold: float
    comparison: Literal["<", "<="] = "<"
    pool: int | tuple[int, int] = 1
    follows: bool = False
    first_alone: bool = False

    def __post_init__(self) -> None:
        sizes = self.pool if isinstance(self.pool, tuple) else (self.pool, 1)
        if len(sizes) != 2 or min(sizes) < 1:
            expected = "a number of tokens from 1 on, or two, of tokens and channels"
            raise ValueError(f"pool: expected {expected}, got {self.pool!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("p_deep", measured=True),)

    def measure(self, seen: Seen) -> Tensor:
        sizes = self.pool if isinstance(self.pool, tuple) else (self.pool, 1)
        residual = seen.h.float() - seen.x.float()
        return relative_l1(pooled(residual, *sizes), pooled(seen.state["p_deep"].float(), *sizes))

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        kept = seen.state["p_deep"]
        return {"p_deep": torch.where(seen.reused, kept, (seen.h.float() - seen.x.float()).type_as(kept))}

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        within = self.within(seen, seen.error)
        return (within | seen.before) if self.follows else within, seen.error
