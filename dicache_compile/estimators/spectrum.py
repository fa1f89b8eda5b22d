"""The estimator of Spectrum (arXiv 2603.01623): Chebyshev polynomials fitted to all anchors, blended with a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import Seen, SlotSpec, anchor_steps
from .linear import Linear

MOST_DEGREE = 8


@dataclass(frozen=True, slots=True)
class Spectrum(Linear):
    """y = x + share sum_m T_m(t) C_m + (1 - share) (R1 + e (R1 - R2) / d), m from 0 to `degree`.

    T_m are Chebyshev polynomials, and t = 2 step / span - 1. The coefficients C are those of a ridge regression over
    the residuals R_j of all anchors of the generation: they minimise sum_j |R_j - sum_m T_m(t_j) C_m|^2 + ridge sum_m
    |C_m|^2. The line is through the last two anchors, d steps apart; e is the number of steps since the newest.

    The published code keeps all anchors and solves for C on each step. Here each anchor corrects C by what it shows to
    be missing, times a gain (recursive least squares). That gives the same C, and keeps degree + 1 tensors, however
    many anchors there are; two more for the line. The weights of a reused step are T_m(t), which the time alone gives.

    Exact to degree 1 with share 0. The regression draws C to 0, and so is exact for no degree; with a `ridge` near 0 it
    is near to exact to `degree`. It computes in float32, and a ridge far below 0.01 loses digits.

    Raises ValueError for a degree outside of 0 to 8, a ridge or span that is not above 0, a share outside of 0 to 1.
    """

    degree: int = 4
    ridge: float = 0.1
    share: float = 0.5
    span: float = 50.0

    def __post_init__(self) -> None:
        if not 0 <= self.degree <= MOST_DEGREE:
            raise ValueError(f"degree: expected a number from 0 to {MOST_DEGREE}, got {self.degree!r}")
        for name in ("ridge", "span"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {getattr(self, name)!r}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: expected a number from 0 to 1, got {self.share!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        count = self.degree + 1
        line = (SlotSpec("r", history=2), anchor_steps(2))
        fit = (*(SlotSpec(f"c{m}") for m in range(count)), SlotSpec("spread", "number", shape=(count, count)))
        return (line if self.share < 1 else ()) + (fit if self.share > 0 else ())

    def terms(self) -> Sequence[str]:
        return [name for spec in self.slots() if spec.like == "carried" for name in spec.reads]

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        found = list[float | Tensor]()
        if self.share < 1:
            steps = seen.steps
            along = (seen.index - steps[0]) / (steps[0] - steps[1])
            along = torch.where(seen.anchors > 1, along, torch.zeros_like(along)) * (1 - self.share)
            found += [1 - self.share + along, -along]
        if self.share > 0:
            found += [self.share * polynomial for polynomial in self._polynomials(seen)]
        return found

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        residual = seen.y.float() - seen.x.float()
        found = {"r": residual} if self.share < 1 else {}
        return found | self._corrected(residual, seen) if self.share > 0 else found

    def _corrected(self, residual: Tensor, seen: Seen) -> dict[str, Tensor]:
        """The coefficients with one more anchor, and their spread: the inverse of Phi' Phi + ridge I."""
        old, begun = seen.state, seen.anchors > 0
        # What another generation left is masked, not multiplied: it may hold anything.
        spread = torch.where(begun, old["spread"], torch.eye(self.degree + 1) / self.ridge)
        held = [torch.where(begun, old[f"c{m}"].float(), torch.zeros_like(residual)) for m in range(self.degree + 1)]
        here = self._polynomials(seen)
        at = torch.stack(here)
        spread_here = (spread * at).sum(-1)
        gain = spread_here / (1 + (at * spread_here).sum())
        missing = residual
        for polynomial, coefficient in zip(here, held, strict=True):
            missing = missing - polynomial * coefficient
        new = {f"c{m}": coefficient + gain[m] * missing for m, coefficient in enumerate(held)}
        return {**new, "spread": spread - gain.unsqueeze(-1) * spread_here}

    def _polynomials(self, seen: Seen) -> list[Tensor]:
        """T_0 to T_degree at this step: T_(m+1) = 2 t T_m - T_(m-1); float32, shape ()."""
        time = seen.index.float() * (2 / self.span) - 1
        found = [torch.ones_like(time), time]
        while len(found) <= self.degree:
            found.append(2 * time * found[-1] - found[-2])
        return found[: self.degree + 1]
