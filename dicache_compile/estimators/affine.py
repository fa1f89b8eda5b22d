"""The last result, scaled and shifted by what a calibration found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..rules import Estimator, Seen, Setting, SlotSpec


class _Affine(Estimator):
    """A residual, and a scale and a shift for each of something; both are fields of a subclass."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def probes(self) -> bool:
        return False

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("r"),)

    def settings(self) -> tuple[Setting, ...]:
        return Setting("scale", self.scale), Setting("shift", self.shift)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"r": seen.y.float() - seen.x.float()}

    def _check(self, of: str) -> None:
        if not self.scale or len(self.scale) != len(self.shift) or not all(map(math.isfinite, self.scale + self.shift)):
            found = f"{len(self.scale)} and {len(self.shift)}"
            raise ValueError(f"expected a finite scale and shift for each {of}, as many of both, got {found}")


@dataclass(frozen=True, slots=True)
class StepAffine(_Affine):
    """y = scale_i (x + R1) + shift_i on step i: ERTACache's error rectification (arXiv 2508.21091, equation 11).

    In the paper's terms scale = 1 - K / 4 and shift = -(B / 4 + 1 / 2). There is one pair for each step of a
    generation; a step beyond the last takes that one's. What the paper changes in the sampler's steps is not done.

    Raises ValueError where there are not as many scales as shifts, none, or one that is not finite.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        self._check("step")

    def estimate(self, seen: Seen) -> Tensor:
        place = seen.index.clamp(max=len(self.scale) - 1).reshape(1)
        scale, shift = (seen.state[name].index_select(0, place) for name in ("scale", "shift"))
        return scale * (seen.x.float() + seen.state["r"].float()) + shift


@dataclass(frozen=True, slots=True)
class ChannelAffine(_Affine):
    """y = x + scale_c R1 + shift_c for channel c of the last dimension: CacheQuant's correction (arXiv 2503.01323).

    The paper fits both to the residuals of a recorded run by least squares: scale is their covariance with R1 over its
    variance. `calibrate` does.

    Raises ValueError where there are not as many scales as shifts, none, or one that is not finite.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        self._check("channel")

    def estimate(self, seen: Seen) -> Tensor:
        size = seen.x.shape[-1]
        if isinstance(size, int) and size != len(self.scale):
            raise ValueError(f"expected a model of {len(self.scale)} channels, got one of {size}")
        return seen.x.float() + seen.state["scale"] * seen.state["r"].float() + seen.state["shift"]
