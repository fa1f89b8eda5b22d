"""Estimators that add weighted anchors to what enters the site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from ..kernels import combination
from ..rules import Estimator, Seen, SlotSpec

MOST = 4  # anchors


class Linear(Estimator):
    """y = base + sum_k w_k R_k over the last anchors, where R = y - base. A subclass says the weights."""

    base: Literal["x", "h"] = "x"
    count: ClassVar[int] = 1  # of the anchors, up to `MOST`

    @property
    def probes(self) -> bool:
        return self.base == "h"

    def check_base(self) -> None:
        """Raises ValueError where `base` is neither "x" nor "h"."""
        if self.base not in ("x", "h"):
            raise ValueError(f"base: expected 'x' or 'h', got {self.base!r}")

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        """The weights of R_1, the newest, and so on: numbers, or float32 of shape () or, one a channel, (C,).

        Where there are fewer anchors than weights, those of the missing ones have to be 0: what has a weight of exactly
        0 is masked, not multiplied, and may hold anything.
        """
        raise NotImplementedError

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("r", history=self.count if self.count > 1 else 0),)

    def terms(self) -> Sequence[str]:
        """What is added, by the names in `Seen.state`: as many as there are weights."""
        return self.slots()[0].reads

    def estimate(self, seen: Seen) -> Tensor:
        residuals = [seen.state[name] for name in self.terms()]
        return combination(self._base(seen), residuals, self.weights(seen))

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"r": seen.y.float() - self._base(seen).float()}

    def _base(self, seen: Seen) -> Tensor:
        return seen.x if self.base == "x" else seen.h
