"""The tensors of one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..plan import Slot

KEPT = ("log", "logged")  # what a stream remembers past its state: the record of its steps


@dataclass(slots=True)
class StreamState:
    """One stream's state for one compiled graph and one shape."""

    owner: int  # which compiled graph
    key: tuple[int, ...]  # which shape
    tensors: Mapping[str, Tensor]  # by slot, in the slots' order
    schedule: tuple[int, int] | None = None  # what the schedule slot holds
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

    def set_schedule(self, schedule: tuple[int, int]) -> None:
        if self.schedule != schedule:
            self.order()
            for place, value in enumerate(schedule):
                self.tensors["schedule"][place].fill_(value)
            self.schedule = schedule


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
