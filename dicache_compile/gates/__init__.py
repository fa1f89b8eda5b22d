"""Gates: one file each."""

from .draft_error import DraftError
from .estimate_error import EstimateError
from .motion import Motion
from .output_rate import OutputRate
from .planned import Planned
from .polynomial import PolynomialChange
from .probe_error import ProbeError
from .residual_change import ResidualChange
from .salient import SalientChange
from .spectral import SpectralChange

__all__ = [
    "DraftError",
    "EstimateError",
    "Motion",
    "OutputRate",
    "Planned",
    "PolynomialChange",
    "ProbeError",
    "ResidualChange",
    "SalientChange",
    "SpectralChange",
]
