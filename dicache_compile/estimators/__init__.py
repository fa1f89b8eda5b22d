"""Estimators: one file each."""

from .adams_bashforth import AdamsBashforth
from .affine import ChannelAffine, StepAffine
from .bands import BandSplit
from .checked import Checked
from .dcta import DCTA
from .extrapolated import Extrapolated
from .feedback import FeedbackDCTA
from .foca import FoCa
from .guidance import GuidanceDifference
from .hermite import Hermite
from .hyca import HyCa
from .learned import LearnedTable
from .linear import Linear
from .mean_velocity import MeanVelocity
from .newton import Newton
from .projected import ProjectedDCTA
from .reuse import Reuse
from .second_order import SecondOrderDCTA
from .spectrum import Spectrum
from .taylor import Taylor
from .tokens import Tokens

__all__ = [
    "DCTA",
    "AdamsBashforth",
    "BandSplit",
    "ChannelAffine",
    "Checked",
    "Extrapolated",
    "FeedbackDCTA",
    "FoCa",
    "GuidanceDifference",
    "Hermite",
    "HyCa",
    "LearnedTable",
    "Linear",
    "MeanVelocity",
    "Newton",
    "ProjectedDCTA",
    "Reuse",
    "SecondOrderDCTA",
    "Spectrum",
    "StepAffine",
    "Taylor",
    "Tokens",
]
