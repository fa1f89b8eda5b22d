"""What gates have in common that compare a number with a threshold."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..rules import Seen, Setting


class Threshold:
    """Reuses while a number is below `threshold`, which changes without compiling. Both are fields of a subclass."""

    threshold: float
    comparison: Literal["<", "<="] = "<"

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("threshold", self.threshold),)

    def within(self, seen: Seen, compared: Tensor) -> Tensor:
        """Whether the number is below: bool, shape (). Never where it is not finite, whatever the threshold."""
        threshold = seen.state["threshold"]
        below = compared < threshold if self.comparison == "<" else compared <= threshold
        return below & (compared < math.inf)


class Accumulated(Threshold):
    """Reuses while the sum of errors since the last deep step is below the threshold. Its slot is "accumulated"."""

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        accumulated = seen.state["accumulated"] + seen.error
        return self.within(seen, accumulated), accumulated

    def settle(self, seen: Seen) -> dict[str, Tensor]:
        return {"accumulated": torch.where(seen.reused, seen.error, torch.zeros_like(seen.error))}
