"""The eager references of the fused operations, in plain PyTorch: what the operators are held against.

State is a contiguous tensor of x's shape. In float8 it has a float32 scale for each row (the last dimension), of shape
[..., 1], and its value is stored * scale. All arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The largest magnitude in a row counts as at least this when its scale is chosen: the scale stays a normal number,
# and a row of zeros has one.
SMALLEST = 1e-30
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def value(stored: Tensor, scale: Tensor | None) -> Tensor:
    """What state stands for: float32, of `stored`'s shape."""
    return stored.float() if scale is None else stored.float() * scale


def scaled(current: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(`current` in a float8 dtype, the scales of its rows). A row with a NaN or an infinity becomes NaN."""
    largest = torch.finfo(dtype).max
    exact = current.float()
    # Times the inverse: CUDA divides by a Python number in that way, and state should not depend on the device.
    scale = exact.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST) * (1 / largest)
    # The cast alone would make infinity or NaN of what division rounds past the largest.
    return (exact / scale).clamp(-largest, largest).to(dtype), scale


def store(current: Tensor, stored: Tensor, scale: Tensor | None) -> None:
    """Writes `current`, of any dtype, to state, and chooses the scales of its rows."""
    if scale is None:
        stored.copy_(current)
        return
    bits, own = scaled(current, stored.dtype)
    scale.copy_(own)
    stored.copy_(bits)


def statistics(
    h: Tensor,
    x: Tensor,
    h_prev: Tensor,
    h_prev_scale: Tensor | None,
    x_prev: Tensor | None,
    x_prev_scale: Tensor | None,
    anchors_p: Sequence[Tensor],
    anchors_p_scales: Sequence[Tensor],
    anchors: Tensor,
) -> Tensor:
    """The sums |h - h_prev|, |h_prev|, |h - x - P2|, |x - x_prev|, |x_prev|: float32, shape (5,).

    Then writes h to `h_prev` and x to `x_prev`. `anchors_p` is the ring of probe residuals, empty or of two places,
    and `anchors` the number of anchors so far, int64, shape (); P2 is the older of the last two. The third sum is 0
    without a ring and with fewer than two anchors, the last two without `x_prev`.
    """
    before = value(h_prev, h_prev_scale)
    nothing = torch.zeros((), dtype=torch.float32, device=h.device)
    sums = [_sum(h.float() - before), _sum(before), nothing, nothing, nothing]
    if anchors_p:
        even, odd = (value(stored, scale) for stored, scale in _with_scales(anchors_p, anchors_p_scales))
        older = torch.where(anchors % 2 == 0, even, odd)
        sums[2] = torch.where(anchors > 1, _sum(h.float() - x.float() - older), nothing)
    if x_prev is not None:
        before = value(x_prev, x_prev_scale)
        sums[3:] = [_sum(x.float() - before), _sum(before)]
        store(x, x_prev, x_prev_scale)
    store(h, h_prev, h_prev_scale)
    return torch.stack(sums)


def combine(
    base: Tensor, residuals: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, dtype: torch.dtype
) -> Tensor:
    """Base + sum_k weights[k] residuals[k] in float32, then cast: `dtype`, of base's shape, contiguous.

    `weights` is float32 of shape (K,), or (K, C) with one for each channel (the last dimension). What has a weight of
    exactly 0 is masked, not multiplied: it may hold anything, NaN included.
    """
    total = base.float()
    for weight, (stored, scale) in zip(weights, _with_scales(residuals, scales), strict=True):
        part = weight * value(stored, scale)
        total = total + torch.where(weight == 0, torch.zeros_like(part), part)
    return total.to(dtype).contiguous()


def _sum(values: Tensor) -> Tensor:
    return values.abs().sum()


def _with_scales(stored: Sequence[Tensor], scales: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    none: list[Tensor | None] = [None] * len(stored)
    return list(zip(stored, scales or none, strict=True))
