"""What the last steps gave, whether they ran or were estimated: a ring with a place for each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rules import Seen, SlotSpec

COUNT = "steps_kept"  # since the first anchor of a generation


def recent(name: str, size: int) -> tuple[SlotSpec, ...]:
    """The slots of a ring; an estimator that has one also needs `counted`."""
    return tuple(SlotSpec(f"{name}_{turn}", measured=True) for turn in range(size))


def counted() -> SlotSpec:
    """The slot that counts the steps."""
    return SlotSpec(COUNT, "number")


def steps_before(seen: Seen) -> Tensor:
    """How many steps are kept before this one: float32, shape ()."""
    count = seen.state[COUNT]
    return torch.where(seen.anchors > 0, count, torch.zeros_like(count))


def ago(seen: Seen, name: str, size: int, age: int | Tensor) -> Tensor:
    """What the ring has of the step `age` steps before this one: float32. One that is not kept may hold anything."""
    turn = (steps_before(seen) - age) % size
    found = seen.state[f"{name}_0"].float()
    for other in range(1, size):
        found = torch.where(turn == other, seen.state[f"{name}_{other}"].float(), found)
    return found


def kept(seen: Seen, size: int, **values: Tensor) -> dict[str, Tensor]:
    """The slots with this step's values, by the names of their rings."""
    before = steps_before(seen)
    turn = before % size
    found = {
        f"{name}_{other}": torch.where(turn == other, value.float(), seen.state[f"{name}_{other}"].float())
        for name, value in values.items()
        for other in range(size)
    }
    return {**found, COUNT: before + 1}
