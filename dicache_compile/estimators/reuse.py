"""The estimator of most caches (TeaCache, arXiv 2411.19108; MagCache, arXiv 2506.09045): the last residual again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..rules import Seen
from .linear import Linear


@dataclass(frozen=True, slots=True, repr=False)
class Reuse(Linear):
    """y = x + R1, where R1 is the residual y - x of the newest deep step. Measures nothing.

    With `base="h"` it is y = h + R1 and R1 = y - h, as FirstBlockCache has it: what the probe gives is this step's.
    Keeps one tensor a stream, besides what a gate keeps.

    Raises ValueError for another base.
    """

    base: Literal["x", "h"] = "x"

    def __post_init__(self) -> None:
        self.check_base()

    def __repr__(self) -> str:
        return "Reuse()" if self.base == "x" else f"Reuse(base={self.base!r})"

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        return (1.0,)
