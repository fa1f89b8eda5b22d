"""Estimators: one file each."""

from .dcta import DCTA
from .feedback import FeedbackDCTA
from .linear import Linear
from .reuse import Reuse
from .second_order import SecondOrderDCTA

__all__ = ["DCTA", "FeedbackDCTA", "Linear", "Reuse", "SecondOrderDCTA"]
