"""DiCache in plain PyTorch and plain Python, written from the paper's rules and from nothing of the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.models import Model


@dataclass
class PlainDiCache:
    """One stream of one model; call it once for each step of a generation."""

    model: Model
    threshold: float
    probe_depth: int = 1
    gamma_range: tuple[float, float] = (1.0, 1.5)
    warmup: int = 3
    last_forced: int | None = None
    deep_steps: tuple[int, ...] = ()
    max_skips: int | None = None
    error: str = "probe"
    order: int = 1
    feedback: float = 0.0
    inclusive: bool = False
    leader: PlainDiCache | None = None  # the stream that is called before it in each step, whose decision it takes over
    h_prev: Tensor | None = None
    x_prev: Tensor | None = None
    accumulated: float = 0.0
    skipped: int = 0
    index: int = 0
    anchors: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (residual, place), newest last
    made: list[Tensor] = field(default_factory=list)  # residuals that stood in since the newest anchor
    owed: Tensor | None = None
    deep: list[bool] = field(default_factory=list)
    errors: list[float | None] = field(default_factory=list)
    gammas: list[float | None] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Tensor:
        carried = self.model.enter(*args)
        x = carried["x"].clone()
        carried = self.model.run(carried, 0, self.probe_depth)
        h = carried["x"].clone()
        reuse = self._reuses(x, h)
        self.h_prev, self.x_prev = h, x
        self.index += 1
        self.deep.append(not reuse)
        if not reuse:
            carried = self.model.run(carried, self.probe_depth, self.model.depth)
            y = carried["x"].clone()
            self.anchors.append((y.float() - x.float(), self._place(x, h)))
            if self.feedback:
                self._settle(x.dtype)
            self.gammas.append(None)
        else:
            carried = {**carried, "x": self._estimate(x, h).to(x.dtype)}
        return self.model.leave(carried)

    def _reuses(self, x: Tensor, h: Tensor) -> bool:
        error = None
        if self.error == "estimate":
            error = self._estimate_error(x, h) if self.index else None
        elif self.h_prev is not None:
            assert self.x_prev is not None
            error = self._relative(h, self.h_prev)
            if self.error == "probe_minus_input":
                error = abs(error - self._relative(x, self.x_prev))
        self.errors.append(error)
        forced = self.index < self.warmup or self.index in self.deep_steps or not self.anchors
        forced |= self.last_forced is not None and self.index >= self.last_forced
        total = (0.0 if self.error == "estimate" else self.accumulated) + (error or 0.0)
        within = total <= self.threshold if self.inclusive else total < self.threshold
        if self.leader is not None:
            within = not self.leader.deep[self.index] and math.isfinite(error or 0.0)
        reuse = not forced and within and (self.max_skips is None or self.skipped < self.max_skips)
        self.accumulated, self.skipped = (total, self.skipped + 1) if reuse else (0.0, 0)
        return reuse

    def _estimate(self, x: Tensor, h: Tensor) -> Tensor:
        gamma = self._gamma(x, h)
        self.gammas.append(gamma)
        self.made.append(self._extrapolated(0, x.dtype, gamma))
        given = 0.0
        if self.owed is not None:
            given = self.feedback * (1 - self.feedback) ** (len(self.made) - 1) * self.owed.to(x.dtype).float()
        return x.float() + self.made[-1] + given

    def _settle(self, dtype: torch.dtype) -> None:
        """Adds what the last run of reused steps lacked to what is owed; the newest anchor is the step after it."""
        newest = self.anchors[-1][0]
        before = [residual.to(dtype).float() for residual, _ in self.anchors[-3:-1]][::-1]
        lacks = torch.zeros_like(newest)
        for place, made in enumerate(self.made if before else [], start=1):
            u = place / (len(self.made) + 1)
            # Lagrange's polynomial through 1, 0 and, where there is one, -back.
            if len(before) == 1:
                true = u * newest + (1 - u) * before[0]
            else:
                back = self._back(dtype)
                true = newest * u * (u + back) / (1 + back) + before[0] * (1 - u) * (u + back) / back
                true = true + before[1] * u * (u - 1) / (back * (1 + back))
            lacks = lacks + true - made
        if self.owed is not None:
            lacks = lacks + (1 - self.feedback) ** len(self.made) * self.owed.to(dtype).float()
        self.owed, self.made = lacks, []

    def _estimate_error(self, x: Tensor, h: Tensor) -> float:
        """How far the same estimate of the probe's residual is off."""
        return self._relative(self._extrapolated(1, x.dtype, self._gamma(x, h)), self._place(x, h))

    def _gamma(self, x: Tensor, h: Tensor) -> float | None:
        if len(self.anchors) < 2:
            return None
        newest, older = (probe.to(x.dtype).float() for _, probe in (self.anchors[-1], self.anchors[-2]))
        gap = (newest - older).abs().mean().item()
        moved = (self._place(x, h) - older).abs().mean().item()
        low, high = self.gamma_range
        return min(max(moved / gap, low), high) if gap > 0 and math.isfinite(moved) else 1.0

    def _extrapolated(self, part: int, dtype: torch.dtype, gamma: float | None) -> Tensor:
        """From the last anchors' residuals (0) or probe residuals (1), which are stored as the stream is."""
        newest = self.anchors[-1][part].to(dtype).float()
        if gamma is None:
            return newest
        older = self.anchors[-2][part].to(dtype).float()
        line = older + gamma * (newest - older)
        if self.order == 1 or len(self.anchors) < 3:
            return line
        # Towards Lagrange's parabola through 1, 0 and -back: the less, the further out.
        oldest = self.anchors[-3][part].to(dtype).float()
        back = self._back(dtype)
        parabola = (
            newest * gamma * (gamma + back) / (1 + back)
            + older * (1 - gamma) * (gamma + back) / back
            + oldest * gamma * (gamma - 1) / (back * (1 + back))
        )
        out = 2 * max(gamma - 1, 0) / (1 + back)
        return line + (parabola - line) / (1 + out * out)

    def _place(self, x: Tensor, h: Tensor) -> Tensor:
        """What gamma is measured on: the probe's residual, or the input where no block is a probe."""
        return h.float() - x.float() if self.probe_depth else x.float()

    def _back(self, dtype: torch.dtype) -> float:
        """The gap of the two older of the last three anchors over that of the two newer."""
        newest, older, oldest = (self.anchors[-age][1].to(dtype).float() for age in (1, 2, 3))
        gap, before = ((newest - older).abs().mean().item(), (older - oldest).abs().mean().item())
        return min(max(before / gap, 0.25), 4.0) if gap > 0 else 1.0

    @staticmethod
    def _relative(a: Tensor, b: Tensor) -> float:
        return ((a.float() - b.float()).abs().mean() / b.float().abs().mean()).item()
