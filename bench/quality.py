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
    return Quality(psnr(picture, reference), ssim(picture, reference))


def psnr(picture: Tensor, reference: Tensor) -> float:
    """Of two pictures or clips of any shape, in [-1, 1]: dB over all their pixels."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_array(reference), _array(picture), data_range=DATA_RANGE))


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Of two pictures [3, H, W] in [-1, 1]."""
    return float(structural_similarity(_array(reference), _array(picture), data_range=DATA_RANGE, channel_axis=0))


def _array(pixels: Tensor) -> np.ndarray:
    return pixels.double().numpy()
