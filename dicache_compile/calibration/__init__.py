"""Measures a user's own model, and fits methods to it."""

from .calibrate import calibrate
from .record import record
from .recording import Recording

__all__ = ["Recording", "calibrate", "record"]
