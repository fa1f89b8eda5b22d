"""What the host writes into slots, without waiting for a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..program import Slot


def write(slot: Tensor, value: Sequence[float]) -> None:
    """Sets a slot that the host tells, [numbers] or [B, numbers]; of a mask the steps that are set."""
    if slot.dtype is torch.bool:
        _mark(slot, value)
        return
    # One at a time: a copy from the host would wait for the device.
    for place, number in zip(slot.reshape(-1, len(value)).unbind(1), value, strict=True):
        place.fill_(number)


def _mark(mask: Tensor, steps: Sequence[float]) -> None:
    """Sets the places of these steps, in order, and no other: all that are as far apart as two neighbours at once."""
    mask.fill_(False)
    places = [int(step) for step in steps]
    while places:
        gap = places[1] - places[0] if len(places) > 1 else 1
        count = next((n for n, place in enumerate(places) if place != places[0] + n * gap), len(places))
        mask[..., places[0] : places[count - 1] + 1 : gap].fill_(True)
        places = places[count:]


def allocate(slot: Slot, shape: tuple[int, ...], on_host: bool = False) -> Tensor:
    """A new tensor for a slot; in host memory it is pinned where a CUDA device is to copy it."""
    # Outside of inference mode, or a later call under plain no_grad could not write to it.
    with torch.inference_mode(False), torch.no_grad():
        if on_host:
            pinned = slot.device.type == "cuda"
            return torch.full(shape, slot.initial, dtype=slot.dtype, device="cpu", pin_memory=pinned)
        return torch.full(shape, slot.initial, dtype=slot.dtype, device=slot.device)
