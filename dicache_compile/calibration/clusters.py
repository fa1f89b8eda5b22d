"""Channels that move alike, as HyCa (arXiv 2510.04188) clusters them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ORDERS = 4  # a value, and its differences up to the third


def features(values: Iterable[Tensor]) -> Tensor:
    """Of each channel its size, and its first three differences over that: [C, 4], each of mean 0 and deviation 1.

    `values` are those of one step after the other, each [..., C].
    """
    squares: list[list[Tensor]] = [[] for _ in range(ORDERS)]
    before: list[Tensor] = []
    for value in values:
        now = [value.flatten(0, -2).double()]
        for older in before:  # the difference of each order, of the step before
            now.append(now[-1] - older)
        for order, one in enumerate(now):
            squares[order].append(one.square().mean(0))
        before = now[: ORDERS - 1]
    sizes = [torch.stack(one).mean(0).sqrt() for one in squares]
    size = sizes[0].clamp(min=1e-30)
    found = torch.stack([size.log(), *(one / size for one in sizes[1:])], dim=1)
    return (found - found.mean(0)) / found.std(0).clamp(min=1e-12)


def clusters(features: Tensor, count: int, rounds: int = 50) -> Tensor:
    """Lloyd's k-means from points at even places of the first feature: the same on every run. [C], int64."""
    order = features[:, 0].argsort()
    places = torch.linspace(0, len(order) - 1, 2 * count + 1)[1::2].long()
    centres = features[order[places]]
    nearest = torch.cdist(features, centres).argmin(1)
    for _ in range(rounds):
        centres = torch.stack([
            features[nearest == one].mean(0) if bool((nearest == one).any()) else centres[one] for one in range(count)
        ])  # fmt: skip
        nearest = torch.cdist(features, centres).argmin(1)
    return nearest
