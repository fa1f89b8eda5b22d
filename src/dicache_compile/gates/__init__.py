"""Gates: one file each."""

from .probe_error import ProbeError

__all__ = ["ProbeError"]
