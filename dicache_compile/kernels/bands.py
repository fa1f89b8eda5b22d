"""Bands of frequencies among the tokens of [..., tokens, channels], all in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def low_of_sequence(value: Tensor, cutoff: float) -> Tensor:
    """What is left of the tokens as one sequence with frequencies up to `cutoff` of the highest: of value's shape."""
    spectrum = torch.view_as_real(torch.fft.rfft(value.float(), dim=-2))
    # Counted in the graph: how many tokens there are may be known only when it runs.
    frequency = torch.ones_like(spectrum[..., :1, :1]).cumsum(-3) - 1
    kept = torch.where(frequency <= cutoff * frequency[..., -1:, :, :], spectrum, torch.zeros_like(spectrum))
    low: Tensor = torch.fft.irfft(torch.view_as_complex(kept), n=value.shape[-2], dim=-2)
    return low


def low_of_grid(value: Tensor, grid: tuple[int, int], cutoff: float) -> Tensor:
    """What is left of the tokens as rows and columns with cosines of a radius up to `cutoff` of the largest.

    Of value's shape. The radius of a cosine is that of its two orders, each over the highest of its axis. Only low
    orders are computed.
    """
    (down, across), disk = (_cosines(size, cutoff) for size in grid), _disk(grid, cutoff)
    # One axis after the other: together they would be a matrix of tokens by tokens.
    orders = torch.einsum("uh,...hwc->...uwc", down, as_grid(value, grid))
    orders = torch.einsum("vw,...uwc->...uvc", across, orders) * disk
    columns = torch.einsum("vw,...uvc->...uwc", across, orders)
    return torch.einsum("uh,...uwc->...hwc", down, columns).flatten(-3, -2)


def low_of_picture(value: Tensor, rows: int, columns: int, cutoff: float) -> Tensor:
    """What is left of two dimensions, `rows` and `columns`, with frequencies in a disk around 0: of value's shape.

    The disk's radius is `cutoff` of the smaller of the two sizes, rounded down to whole periods.
    """
    spectrum = torch.view_as_real(torch.fft.fft2(value.float(), dim=(rows, columns)))
    # Counted in the graph: how large the picture is may be known only when it runs.
    ones = torch.ones_like(value, dtype=torch.float32)
    places = [ones.cumsum(dim) - 1 for dim in (rows, columns)]
    sizes = [ones.sum(dim, keepdim=True) for dim in (rows, columns)]
    down, across = (torch.minimum(place, size - place) for place, size in zip(places, sizes, strict=True))
    radius = (cutoff * torch.minimum(*sizes) + 1e-3).floor()
    inside = (down.square() + across.square() <= radius.square()).unsqueeze(-1)
    kept = torch.where(inside, spectrum, torch.zeros_like(spectrum))
    return torch.view_as_real(torch.fft.ifft2(torch.view_as_complex(kept), dim=(rows, columns))).select(-1, 0)


_ALONG = ("if,...frcx->...ircx", "ir,...frcx->...ficx", "ic,...frcx->...frix")  # frames, rows, columns


def wiener(value: Tensor, grid: tuple[int, int, int], sigma: Tensor) -> Tensor:
    """The tokens as frames, rows and columns, with the gain that a Wiener filter has at noise level `sigma`.

    Of value's shape. Along each axis the gain is (1 - sigma) P / ((1 - sigma)^2 P + sigma^2), P = 1 / |f|^3, and that
    of a frequency is the product of three, over the mean of all. `sigma`, of shape (), is held within 1e-6 of 0 and 1.
    """
    noise = sigma.clamp(1e-6, 1 - 1e-6)
    signal = 1 - noise
    tokens = as_grid(value, grid)
    for size, along in zip(grid, _ALONG, strict=True):
        power = 1 / (torch.fft.fftfreq(size).abs() ** 3 + 1e-16)
        gain = signal * power / (signal.square() * power + noise.square() + 1e-16)
        # Each axis over its own mean: the mean of products over a grid is the product of means.
        tokens = torch.einsum(along, _filtering(gain / gain.mean(), size), tokens)
    return tokens.flatten(-4, -2)


def _filtering(gain: Tensor, size: int) -> Tensor:
    """The matrix that gives an axis this gain by frequency, [size, size].

    Of real numbers, and small: a Fourier transform would have complex ones, for which Inductor has no code.
    """
    place = torch.arange(size)
    response = (torch.cos(2 * math.pi / size * torch.outer(place, place)) * gain).sum(-1) / size
    apart = (place.unsqueeze(1) - place) % size
    return response.index_select(0, apart.flatten()).reshape(size, size)


def check_grid(grid: tuple[int, ...], *names: str) -> None:
    """Raises ValueError for a grid that does not have a size from 1 on for each name."""
    if len(grid) != len(names) or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in grid):
        raise ValueError(f"grid: expected ({', '.join(names)}), whole numbers from 1 on, got {grid!r}")


def as_grid(value: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[..., *grid, channels]; raises ValueError where it is known that there are not as many tokens."""
    tokens, places = value.shape[-2], math.prod(grid)
    if isinstance(tokens, int) and tokens != places:
        raise ValueError(f"grid: {' x '.join(map(str, grid))} has {places} places, and the model {tokens} tokens")
    return torch.unflatten(value.float(), -2, grid)


def _highest(size: int) -> int:
    return max(size - 1, 1)


def _count(size: int, cutoff: float) -> int:
    """How many orders of an axis may be low."""
    return min(int(cutoff * math.sqrt(2) * _highest(size) + 1e-9) + 1, size)


def _cosines(size: int, cutoff: float) -> Tensor:
    """The orthonormal cosines of low orders, [orders, size]."""
    order = torch.arange(_count(size, cutoff), dtype=torch.float64).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(math.pi / size * order * (place + 0.5)) * math.sqrt(2 / size)
    return torch.where(order == 0, cosines * math.sqrt(0.5), cosines).float()


def _disk(grid: tuple[int, int], cutoff: float) -> Tensor:
    """Which pairs of orders are low, [row orders, column orders, 1]: 1.0 or 0.0."""
    shares = (torch.arange(_count(size, cutoff), dtype=torch.float64) / _highest(size) for size in grid)
    rows, columns = (share.square() for share in shares)
    return (rows.unsqueeze(1) + columns <= 2 * cutoff**2 + 1e-9).float().unsqueeze(-1)
