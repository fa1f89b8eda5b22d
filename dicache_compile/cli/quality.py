"""How near what a cached run gave is to what the uncached one gave: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from .answer import Mistake

_WINDOW = 7  # pixels a side, over which SSIM compares
_COLOURS = (1, 3, 4)  # channels of a picture; anything else are latents


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave, on the host."""

    values: npt.NDArray[np.float64]  # [..., channels, height, width] of pictures and clips; any shape of others
    spatial: bool  # whether it has height and width
    span: float | None  # of its values, where the form says: 255 of bytes


def result(given: Any) -> Result:
    """Of a tensor, an array, a picture or lists of these, or of what a diffusers pipeline returns. Raises Mistake."""
    for name in ("images", "frames", "videos", "sample"):
        given = getattr(given, name, given)
    if isinstance(given, Tensor):
        array, last = given.detach().float().cpu().numpy(), False
    elif isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
        array, last = np.stack([one.detach().float().cpu().numpy() for one in given]), False
    else:
        array, last = _array(given), True
    span = 255.0 if array.dtype == np.uint8 else None
    values = array.astype(np.float64)
    spatial = values.ndim > 3 or (values.ndim == 3 and values.shape[-1 if last else 0] in _COLOURS)
    return Result(np.moveaxis(values, -1, -3) if last and spatial else values, spatial, span)


def span_of(reference: Result) -> float:
    """Over which range errors count: 255 of bytes, 1 of pictures in [0, 1], 2 of [-1, 1]; else from least to most."""
    if reference.span is not None:
        return reference.span
    low, high = float(reference.values.min()), float(reference.values.max())
    if low >= -1 and high <= 1:
        return 1.0 if low >= 0 else 2.0
    return high - low


def psnr(one: Result, reference: Result, span: float) -> float:
    """In dB; infinite where both are equal."""
    if np.array_equal(one.values, reference.values):
        return float("inf")  # whatever the range, which may be none
    compare: Callable[..., float] = peak_signal_noise_ratio
    return float(compare(reference.values, one.values, data_range=span))


def ssim(one: Result, reference: Result, span: float) -> float | None:
    """1 where both are equal, the mean of all pictures or frames; None of what is none, or is too small."""
    if not reference.spatial or min(reference.values.shape[-2:]) < _WINDOW:
        return None
    compare: Callable[..., float] = structural_similarity
    pairs = zip(_pictures(one.values), _pictures(reference.values), strict=True)
    return float(np.mean([compare(theirs, ours, data_range=span, channel_axis=0) for ours, theirs in pairs]))


def check_alike(one: Result, reference: Result) -> None:
    """Raises Mistake where two results cannot be compared."""
    if one.values.shape != reference.values.shape:
        raise Mistake(
            f"the same seed gave {list(reference.values.shape)} and then {list(one.values.shape)}: generate(seed) has "
            "to give results of one shape"
        )


def _pictures(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values.reshape(-1, *values.shape[-3:])


def _array(given: Any) -> npt.NDArray[Any]:
    """Pictures and arrays, alone or in lists, as one array with its channels last."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise Mistake(f"generate(seed) gave what is no array: {error}") from error
    if isinstance(given, Mapping) or array.dtype.kind not in "fiub" or array.size == 0:
        raise Mistake(f"generate(seed) gave a {type(given).__name__}: expected a tensor, an array or pictures")
    return array
