"""Schedules from numbers that were measured once: each function is one published rule."""

from .cheapest import cheapest
from .growing import growing
from .lags import by_lag
from .magnitudes import by_magnitude
from .sums import by_sum
from .tapered import tapered

__all__ = ["by_lag", "by_magnitude", "by_sum", "cheapest", "growing", "tapered"]
