"""DCTA with a gamma that has a sign: how far the probe has come along the way between its anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import Seen, SlotSpec
from .dcta import DCTA

_LEAST = 1e-6  # added to the denominator in the published code


@dataclass(frozen=True, slots=True)
class ProjectedDCTA(DCTA):
    """`DCTA` with gamma = clip(<p - P2, P1 - P2> / (|P1 - P2|^2 + 1e-6)), WorldCache's (arXiv 2603.22286) projection.

    It is the gamma with which P2 + gamma (P1 - P2) is nearest to p. A probe that turns round gives less than 0 before
    clipping, where the ratio of norms gives the same as if it went on; a probe that moves sideways does not raise it.
    The published range is (0.2, 1.8). One gamma for all rows; with `rows="independent"` one for
    each, as in the published code.
    """

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("r", history=2), SlotSpec("p", history=2, measured=True)

    def aid(self, seen: Seen) -> Tensor:
        """Gamma: float32, shape (); NaN with one anchor."""
        newest, older, bounds = seen.state["p1"].float(), seen.state["p2"].float(), seen.state["gamma_range"]
        way = newest - older
        along = ((self._place(seen) - older) * way).sum() / (way.square().sum() + _LEAST)
        return torch.where(
            seen.anchors > 1, torch.clamp(along, bounds[0], bounds[1]), torch.full_like(along, torch.nan)
        )

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"r": seen.y.float() - seen.x.float(), "p": self._place(seen).type_as(seen.state["p1"])}
