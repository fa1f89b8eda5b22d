"""The gate of WorldCache (arXiv 2603.22286): the probe's change where most happens, and less of it the more moves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import relative_l1
from ..kernels.bands import as_grid, check_grid
from ..rules import Gate, Seen, SlotSpec
from .threshold import Threshold

_LEAST = 1e-6  # added to denominators in the published code


@dataclass(frozen=True, slots=True)
class SalientChange(Threshold, Gate):
    """Adds up how much h changes from step to step and reuses while the sum is below a threshold.

    The threshold is divided by 1 + motion mean|x - x_prev| / mean|x_prev|: where the input moves more, less may change.
    With `relax` it is multiplied by 1 + relax step / num_steps.

    With a `grid`, (frames, rows, columns) of the tokens, the change is weighted: mean(w |h - h_prev|) / mean|h_prev|.
    w = 1 + salience s for each row and column, s from 0 to 1 in each sample: by the standard deviation of h_prev over
    frames and channels. Without one the change is mean|h - h_prev| / mean|h_prev|. Of several carried values the
    denoised one is measured.

    The numbers are those of the code; its `relax` is 0 or 4. What else can be switched on there, it leaves out: a limit
    for high frequencies, features moved by an optical flow, and the last unconditional result of the second half.

    Raises ValueError for a grid that is no three sizes, a number below 0, and `relax` without `num_steps`.
    """

    threshold: float
    grid: tuple[int, int, int] | None = None
    salience: float = 5.0
    motion: float = 5.0
    relax: float = 0.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if self.grid is not None:
            check_grid(self.grid, "frames", "rows", "columns")
        for name in ("salience", "motion", "relax"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0 on, got {value!r}")
        steps = self.num_steps
        if self.relax and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"num_steps: relax needs the number of steps of a generation, got {steps!r}")

    @property
    def first_alone(self) -> bool:
        return True

    def slots(self) -> tuple[SlotSpec, ...]:
        kept = [SlotSpec(name, measured=True) for name in ("h_prev", "x_prev")]
        return (*kept, SlotSpec("summed", "number"))

    def measure(self, seen: Seen) -> Tensor:
        """The sum over what its own threshold would be, for a threshold of 1."""
        error = self._sum(seen) * (1 + self.motion * relative_l1(seen.x, seen.state["x_prev"]))
        return error / (1 + self.relax * seen.index.float() / self.num_steps) if self.num_steps else error

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return self.within(seen, seen.error), seen.error

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        total = self._sum(seen)
        kept = torch.where(seen.reused, total, torch.zeros_like(total))
        return {"h_prev": seen.h, "x_prev": seen.x, "summed": kept}

    def _sum(self, seen: Seen) -> Tensor:
        return seen.state["summed"] + self._change(seen)

    def _change(self, seen: Seen) -> Tensor:
        if self.grid is None:
            return relative_l1(seen.h, seen.state["h_prev"])
        h, before = (as_grid(one, self.grid) for one in (seen.h, seen.state["h_prev"]))
        spread = before.std((-4, -1))
        least, most = spread.amin((-2, -1), keepdim=True), spread.amax((-2, -1), keepdim=True)
        weights = 1 + self.salience * (spread - least) / (most - least + _LEAST)
        moved = (h - before).abs().mean((-4, -1))
        return (weights * moved).mean() / (before.abs().mean() + _LEAST)
