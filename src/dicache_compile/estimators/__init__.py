"""Estimators: one file each."""

from .dcta import DCTA
from .reuse import Reuse

__all__ = ["DCTA", "Reuse"]
