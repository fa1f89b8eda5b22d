"""State in float8: stored with a float32 scale for each row (the last dimension), of shape [..., 1].

Its value is stored * scale. All arithmetic is in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# The largest magnitude in a row counts as at least this when its scale is chosen: the scale stays a normal number,
# and a row of zeros has one.
SMALLEST = 1e-30


def value(stored: Tensor, scale: Tensor) -> Tensor:
    """What state stands for: float32, of `stored`'s shape."""
    return stored.float() * scale


def scaled(current: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(`current` in a float8 dtype, the scales of its rows). A row with a NaN or an infinity becomes NaN."""
    largest = torch.finfo(dtype).max
    exact = current.float()
    # Times the inverse: CUDA divides by a Python number in that way, and state should not depend on the device.
    scale = exact.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST) * (1 / largest)
    # The cast alone would make infinity or NaN of what division rounds past the largest.
    return (exact / scale).clamp(-largest, largest).to(dtype), scale
