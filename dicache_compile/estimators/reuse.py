"""The estimator of most caches (TeaCache, arXiv 2411.19108; MagCache, arXiv 2506.09045): the last residual again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rules import Seen
from .linear import Linear


@dataclass(frozen=True, slots=True)
class Reuse(Linear):
    """y = x + R1, where R1 is the residual y - x of the newest deep step. Measures nothing.

    Keeps one tensor a stream. The gate keeps its own, also on a schedule: with the default gate it is two together.
    """

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        return (1.0,)
