"""The tensors of one stream."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..passes.control import DEEP_STEPS
from ..plan import Slot
from .settings import Settings

KEPT = ("log", "logged")  # what a stream remembers past its state: the record of its steps


@dataclass(slots=True)
class StreamState:
    """One stream's state for one compiled graph and one shape."""

    owner: int  # which compiled graph
    key: tuple[int, ...]  # which shape
    tensors: Mapping[str, Tensor]  # by slot, in the slots' order
    told: dict[str, tuple[float, ...]] = field(default_factory=dict)  # what the slots hold that the host writes
    calls: int = 0  # of this generation, where steps are counted
    recording: Any = None  # what an engine has captured for these tensors
    values: tuple[Tensor, ...] = field(init=False)  # the tensors alone

    def __post_init__(self) -> None:
        self.values = tuple(self.tensors.values())

    def order(self) -> None:
        """To be called before the host writes to the state: a captured step may still run on another CUDA stream."""
        if self.recording is not None:
            self.recording.order()

    def restart(self) -> None:
        """Asks for a new generation with the next step; waits for nothing."""
        self.order()
        self.tensors["restart"].fill_(True)
        self.calls = 0

    def tell(self, settings: Settings) -> None:
        """Has the next generation go by these settings; writes what differs, and waits for nothing."""
        changed = {slot: value for slot, value in settings.values.items() if self.told.get(slot) != value}
        if not changed:
            return
        self.order()
        for slot, value in changed.items():
            if slot == DEEP_STEPS:
                _mark(self.tensors[slot], value)
            else:
                # One place at a time: a copy from the host would wait for the device.
                for place, number in zip(self.tensors[slot].reshape(-1), value, strict=True):
                    place.fill_(number)
        self.told.update(changed)


def _mark(mask: Tensor, steps: Sequence[float]) -> None:
    """Sets the places of these steps, each run of neighbours at once, and no other."""
    mask.fill_(False)
    for _, run in itertools.groupby(enumerate(steps), key=lambda numbered: numbered[1] - numbered[0]):
        neighbours = [int(step) for _, step in run]
        mask[neighbours[0] : neighbours[-1] + 1].fill_(True)


def allocate(
    slots: Sequence[Slot], shapes: Mapping[str, tuple[int, ...]], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """New tensors for these slots, but for those in `kept`."""
    # Outside of inference mode, or a later call under plain no_grad could not write to them.
    with torch.inference_mode(False), torch.no_grad():
        return {
            slot.name: kept[slot.name]
            if slot.name in kept
            else torch.full(shapes[slot.name], slot.initial, dtype=slot.dtype, device=slot.device)
            for slot in slots
        }
