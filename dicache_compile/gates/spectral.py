"""The gate of SeaCache (arXiv 2602.18993): how much of the input changes beneath its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..kernels import relative_l1
from ..kernels.bands import check_grid, wiener
from ..rules import Gate, Seen, Setting, SlotSpec
from .threshold import Accumulated, Threshold


@dataclass(frozen=True, slots=True)
class SpectralChange(Accumulated, Gate):
    """Adds up mean|s - s_prev| / mean|s_prev| from step to step and reuses while the sum is below a threshold.

    s is x through a Wiener filter over frames, rows and columns (equation 7): at noise level sigma it keeps frequencies
    by as much as pictures, whose power falls as 1 / |f|^3, stand out of white noise. `grid` is (frames, rows, columns)
    of the tokens, the dimension before the last; a picture has one frame. It fits one size of picture.

    `sigma` is the timestep that is pure noise, sigma being the timestep over it: 1000 for most models, 1 where the
    pipeline divides by 1000 itself. Or it has the sampler's sigma for each step, and a step beyond the last takes that
    one's. The paper filters the latents: x is these with `sites="model"`, and else what the model embeds them to.

    Looks at no block: `probe_depth=0`. Raises ValueError for a grid that is no three sizes, or a sigma that is not
    finite or, as a timestep, not above 0.
    """

    threshold: float
    grid: tuple[int, int, int]
    sigma: float | tuple[float, ...] = 1000.0
    comparison: Literal["<", "<="] = "<"

    def __post_init__(self) -> None:
        check_grid(self.grid, "frames", "rows", "columns")
        if isinstance(self.sigma, tuple):
            if not self.sigma or not all(0 <= one <= 1 for one in self.sigma):
                raise ValueError(f"sigma: expected a number from 0 to 1 for each step, got {self.sigma!r}")
        elif not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a finite timestep above 0, or numbers for steps, got {self.sigma!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("s_prev", measured=True), SlotSpec("accumulated", "number", shared=True)

    def settings(self) -> tuple[Setting, ...]:
        levels = (Setting("sigma", self.sigma),) if isinstance(self.sigma, tuple) else ()
        return (*Threshold.settings(self), *levels)

    def measure(self, seen: Seen) -> Tensor:
        return relative_l1(self._signal(seen), seen.state["s_prev"])

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        return {"s_prev": self._signal(seen)}

    def _signal(self, seen: Seen) -> Tensor:
        if isinstance(self.sigma, tuple):
            place = seen.index.clamp(max=len(self.sigma) - 1).reshape(1)
            return wiener(seen.x, self.grid, seen.state["sigma"].index_select(0, place).reshape(()))
        return wiener(seen.x, self.grid, seen.time / self.sigma)
