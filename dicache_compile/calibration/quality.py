"""How near one result of a user's function is to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FIELDS = ("images", "frames", "videos", "sample")  # of what diffusers' pipelines return


def values(given: Any) -> Tensor:
    """The numbers of a tensor, an array, a picture or lists of these, or of what a diffusers pipeline returns: float64.

    Raises TypeError for anything else.
    """
    for name in _FIELDS:
        given = getattr(given, name, given)
    if isinstance(given, Tensor):
        return given.detach().cpu().double()
    if isinstance(given, (list, tuple)) and given:
        return torch.stack([values(one) for one in given])
    if hasattr(given, "__array_interface__"):  # arrays, and pictures of PIL
        import numpy as np

        return torch.from_numpy(np.array(given)).double()
    raise TypeError(f"expected a tensor, an array or pictures from the function, got {type(given).__name__}")


def span(reference: Tensor) -> float:
    """Over which range errors count: 255 of bytes, 1 of pictures in [0, 1], 2 of [-1, 1]; else from least to most."""
    low, high = float(reference.min()), float(reference.max())
    if low >= -1 and high <= 1:
        return 1.0 if low >= 0 else 2.0
    whole = bool((reference == reference.round()).all())
    return 255.0 if whole and low >= 0 and high <= 255 else high - low


def psnr(one: Tensor, reference: Tensor, most: float = 100.0) -> float:
    """In dB, at most `most`, which equal results have."""
    if one.shape != reference.shape:
        raise ValueError(f"two runs of one seed differ in shape: {tuple(one.shape)} and {tuple(reference.shape)}")
    error = float((one - reference).square().mean())
    if error == 0:
        return most
    return min(most, float(10 * torch.log10(torch.tensor(span(reference) ** 2 / error, dtype=torch.float64))))
