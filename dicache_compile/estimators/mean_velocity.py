"""The estimator of MeanCache (arXiv 2601.19961): a velocity, corrected by the mean velocity over some steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules import KeepingEstimator, Seen, Setting, SlotSpec
from .recent import ago, counted, kept, recent, steps_before

MOST_SPAN = 6


@dataclass(frozen=True, slots=True)
class MeanVelocity(KeepingEstimator):
    """v = v_1 - (v_n - u) (s' - s) / (s - s_n), u = (x - x_n) / (s - s_n), with v_n, x_n, s_n of n steps before.

    v is the velocity that the model gives, x the latents, s the sampler's sigma of this step and s' that of the next.
    The mean velocity u is where the sampler went by, so nothing is computed for it. Estimated steps count as any other.
    It is for the whole model (`sites="model"`) with `carried="residual"`, which shows it x.

    `sigmas` has one for each step, and one more after the last. `spans` is n, or n for each step, at most 6; where
    there are fewer steps n is as many as there are. Keeps two tensors for each step of the largest span. Exact on
    constant velocities.

    Raises ValueError for a span outside of 1 to 6, sigmas that do not all fall, or not as many spans as steps.
    """

    sigmas: tuple[float, ...]
    spans: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2 or not all(map(math.isfinite, self.sigmas)):
            raise ValueError(f"sigmas: expected finite numbers, one for each step and one more, got {self.sigmas!r}")
        if not all(later < earlier for earlier, later in itertools.pairwise(self.sigmas)):
            raise ValueError(f"sigmas: expected numbers that fall from step to step, got {self.sigmas!r}")
        spans = self.spans if isinstance(self.spans, tuple) else (self.spans,)
        if not spans or not all(1 <= span <= MOST_SPAN for span in spans):
            raise ValueError(f"spans: expected numbers of steps from 1 to {MOST_SPAN}, got {self.spans!r}")
        if isinstance(self.spans, tuple) and len(spans) != len(self.sigmas) - 1:
            raise ValueError(f"spans: expected one for each of {len(self.sigmas) - 1} steps, got {len(spans)}")

    @property
    def probes(self) -> bool:
        """Of the whole model h is x, which has to be known."""
        return True

    @property
    def _most(self) -> int:
        return max(self.spans) if isinstance(self.spans, tuple) else self.spans

    def slots(self) -> tuple[SlotSpec, ...]:
        return *recent("x", self._most), *recent("v", self._most), counted()

    def settings(self) -> tuple[Setting, ...]:
        spans = self.spans if isinstance(self.spans, tuple) else (self.spans,)
        return Setting("sigmas", self.sigmas), Setting("spans", tuple(map(float, spans)))

    def estimate(self, seen: Seen) -> Tensor:
        last = len(self.sigmas) - 2
        step = seen.index.clamp(max=last)
        spans = seen.state["spans"]
        asked = spans.index_select(0, step.clamp(max=spans.shape[0] - 1).reshape(1)).reshape(())
        span = torch.minimum(asked, steps_before(seen))
        sigmas = seen.state["sigmas"]
        now, after, then = (
            sigmas.index_select(0, at.to(torch.int64).reshape(1)).reshape(())
            for at in (step, step + 1, (step - span).clamp(min=0))
        )
        since = now - then
        mean = (seen.x.float() - ago(seen, "x", self._most, span)) / since
        return ago(seen, "v", self._most, 1) - (ago(seen, "v", self._most, span) - mean) * ((after - now) / since)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return kept(seen, self._most, x=seen.x, v=seen.y)

    def keep(self, seen: Seen) -> dict[str, Tensor]:
        return self.anchor(seen)
