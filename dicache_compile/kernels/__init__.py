"""The arithmetic of gates and estimators as reference operations in plain PyTorch."""

from .reference import (
    clipped_ratio,
    combination,
    extrapolate,
    mean_abs_difference,
    pooled,
    relative_l1,
    second_difference,
)

__all__ = [
    "clipped_ratio",
    "combination",
    "extrapolate",
    "mean_abs_difference",
    "pooled",
    "relative_l1",
    "second_difference",
]
