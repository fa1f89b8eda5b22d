"""Estimators: one file each."""

from .dcta import DCTA
from .reuse import Reuse
from .second_order import SecondOrderDCTA

__all__ = ["DCTA", "Reuse", "SecondOrderDCTA"]
