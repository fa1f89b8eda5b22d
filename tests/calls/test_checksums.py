"""What tells prompts apart: each element of a condition and its place count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dicache_compile.write.control import checksum


def ones(shape: tuple[int, ...]) -> Tensor:
    """At most 64 of them among zeros, so that float32 sums of weights of 17 bits are exact, in whatever order."""
    flat = torch.zeros(math.prod(shape))
    flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:64]] = 1.0
    return flat.view(shape)


def by_hand(condition: Tensor) -> float:
    def weight(place: int) -> float:
        return (place * 2654435761 // 65536) % 65536 / 65536 + 0.5

    return sum(value * weight(place) for place, value in enumerate(condition.flatten().tolist()))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 5), (1 << 14, 2), (0,)], ids=str)
def test_the_checksum_is_the_weighted_sum(shape: tuple[int, ...]) -> None:
    found = checksum(ones(shape))
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == by_hand(ones(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_any_kind_of_number_has_a_checksum(dtype: torch.dtype) -> None:
    condition = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    assert checksum(condition).item() == by_hand(condition.double())


@pytest.mark.parametrize("apart", [1, 2, 255, 4096, 65521, 1 << 16, 1 << 17])
def test_two_elements_that_change_places_change_the_checksum(apart: int) -> None:
    condition = torch.zeros(1 << 18)
    condition[5] = 1.0
    assert checksum(condition).item() != checksum(condition.roll(apart)).item()
