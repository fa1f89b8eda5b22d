"""Estimators: one file each."""

from .adams_bashforth import AdamsBashforth
from .affine import ChannelAffine, StepAffine
from .bands import BandSplit
from .dcta import DCTA
from .feedback import FeedbackDCTA
from .foca import FoCa
from .hermite import Hermite
from .hyca import HyCa
from .learned import LearnedTable
from .linear import Linear
from .newton import Newton
from .projected import ProjectedDCTA
from .reuse import Reuse
from .second_order import SecondOrderDCTA
from .spectrum import Spectrum
from .taylor import Taylor

__all__ = [
    "DCTA",
    "AdamsBashforth",
    "BandSplit",
    "ChannelAffine",
    "FeedbackDCTA",
    "FoCa",
    "Hermite",
    "HyCa",
    "LearnedTable",
    "Linear",
    "Newton",
    "ProjectedDCTA",
    "Reuse",
    "SecondOrderDCTA",
    "Spectrum",
    "StepAffine",
    "Taylor",
]
