"""How much moves in a clip: the motion regularization of AdaCache (arXiv 2411.02397)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Motion:
    """What `Planned` multiplies a change by, so that clips in which more moves have more deep steps.

    m = (d / level) ^ power, where d compares the frames of y that stand `strides` apart: sum|later - earlier| /
    (sum|later| + sum|earlier|), the mean over the strides. A frame is `frame_tokens` tokens, one after the other in the
    dimension before the last. The factor is m + |slope (m - m_1) / n|: m_1 is that of the deep step before, n how many
    steps lie between both. Outside of `steps`, (first, last) counted from 1 on, m is 1.

    The numbers are those of AdaCache's code for 100 steps; for 30 it has `steps=(4, 26)`. A clip of one frame, or of
    fewer than the widest stride, is never reused. It looks at one whole clip: not for ranks with parts of the tokens.

    Raises ValueError for what is not above 0, and for a last step before the first.
    """

    frame_tokens: int
    steps: tuple[int, int] = (10, 90)
    strides: tuple[int, ...] = (1,)
    level: float = 0.385
    power: float = 8.0
    slope: float = 10.0

    def __post_init__(self) -> None:
        wholes = (self.frame_tokens, *self.strides)
        if not self.strides or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in wholes):
            raise ValueError(f"frame_tokens, strides: expected whole numbers from 1 on, got {wholes}")
        if not all(0 < one < math.inf for one in (self.level, self.power, self.slope)):
            raise ValueError(f"level, power, slope: expected numbers above 0, got {self!r}")
        first, last = self.steps
        if not 1 <= first <= last:
            raise ValueError(f"steps: expected the first and the last one, counted from 1 on, got {self.steps}")

    def measure(self, y: Tensor, index: Tensor) -> Tensor:
        """m: float32, shape (), of a clip [..., tokens, channels] on the step `index`, counted from 0 on."""
        first, last = self.steps
        inside = (index + 1 >= first) & (index + 1 <= last)
        apart = [_difference(y, stride * self.frame_tokens) for stride in self.strides]
        moved = (sum(apart[1:], apart[0]) / len(apart) / self.level) ** self.power
        return torch.where(inside, moved, torch.ones_like(moved))


def _difference(y: Tensor, tokens: int) -> Tensor:
    later, earlier = y[..., tokens:, :].float(), y[..., :-tokens, :].float()
    return (later - earlier).abs().sum() / (later.abs().sum() + earlier.abs().sum())
