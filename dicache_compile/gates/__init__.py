"""Gates: one file each."""

from .estimate_error import EstimateError
from .probe_error import ProbeError

__all__ = ["EstimateError", "ProbeError"]
