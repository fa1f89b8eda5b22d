"""The reference operations, all in float32 whatever the dtype of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_abs_difference(a: Tensor, b: Tensor) -> Tensor:
    """mean|a - b|, float32, shape ()."""
    return (a.float() - b.float()).abs().mean()


def relative_l1(current: Tensor, previous: Tensor) -> Tensor:
    """mean|current - previous| / mean|previous|, float32, shape (); NaN or infinite where `previous` is all zero."""
    return mean_abs_difference(current, previous) / previous.float().abs().mean()


def clipped_ratio(numerator: Tensor, denominator: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Numerator / denominator clipped to [low, high], and 1 where that is not a number or the denominator vanishes.

    The bounds are two numbers or two tensors of shape ().
    The published scripts let 0/0 through `clip` as NaN (methods: DiCache, bug 1).
    """
    ratio = torch.clamp(numerator / denominator, low, high)  # type: ignore[arg-type]
    usable = (denominator > 0) & (ratio == ratio)
    return torch.where(usable, ratio, torch.ones_like(ratio))


def second_difference(newest: Tensor, older: Tensor, oldest: Tensor, ratio: Tensor) -> Tensor:
    """Newton's second divided difference of three tensors at 1, 0 and -ratio, of their shape and dtype.

    `ratio`, of shape (), is the older gap over the newer one.
    """
    return ((newest - older) - (older - oldest) / ratio) / (1 + ratio)


def combination(base: Tensor, residuals: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Base + sum_k weights[k] residuals[k]: float32, of base's shape.

    A weight is a number, or float32 of shape () or (C,), one for each channel (the last dimension). What has a weight
    of exactly 0 is masked, not multiplied: it may hold anything, NaN included.
    """
    total = base.float()
    for weight, residual in zip(weights, residuals, strict=True):
        if not isinstance(weight, (int, float)):
            part = weight * residual.float()
            total = total + torch.where(weight == 0, torch.zeros_like(part), part)
        elif weight != 0:
            total = total + (residual.float() if weight == 1 else weight * residual.float())
    return total


def extrapolate(base: Tensor, newest: Tensor, older: Tensor, gamma: Tensor, has_older: Tensor) -> Tensor:
    """A linear extrapolation: base + older + gamma (newest - older), or base + newest where there is no older.

    float32, of base's shape.
    `gamma` and `has_older` have shape (). An older that does not exist is masked, not multiplied by zero: it may hold
    anything, NaN included.
    """
    near, far = newest.float(), older.float()
    return base.float() + torch.where(has_older, far + gamma * (near - far), near)


def pooled(value: Tensor, tokens: int, channels: int = 1) -> Tensor:
    """[..., T, C] averaged over groups of so many tokens and channels, without what is left: [..., T // tokens, C //
    channels].
    """
    for dimension, size in ((-2, tokens), (-1, channels)):
        if size > 1:
            groups = value.shape[dimension] // size
            whole = value.narrow(dimension, 0, groups * size)
            value = torch.unflatten(whole, dimension, (groups, size)).mean(dimension)
    return value
