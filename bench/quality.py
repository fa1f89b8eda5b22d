"""How near a cached picture is to the uncached one, by the two measures that papers on caches report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

DATA_RANGE = 2.0  # pictures are in [-1, 1]


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one picture against its reference."""

    psnr: float  # dB; infinite where the two are equal
    ssim: float  # 1 where the two are equal


def compare(picture: Tensor, reference: Tensor) -> Quality:
    """Two pictures [3, H, W] in [-1, 1]."""
    ours, theirs = (pixels.permute(1, 2, 0).double().numpy() for pixels in (picture, reference))
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(theirs, ours, data_range=DATA_RANGE)
    return Quality(float(psnr), float(structural_similarity(theirs, ours, data_range=DATA_RANGE, channel_axis=2)))
