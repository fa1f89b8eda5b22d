"""Estimators: one file each."""

from .dcta import DCTA

__all__ = ["DCTA"]
