"""What estimators have in common whose weights follow from where a step and its anchors lie in time."""

from __future__ import annotations

import itertools
import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..rules import Seen, Setting, SlotSpec, anchor_steps, anchor_times
from .linear import MOST, Linear
from .weights import Weights, by_count

Times: TypeAlias = "Literal['steps', 'timesteps'] | tuple[float, ...]"
"""What counts as time: the number of a step, the model's timestep, or a number for each step of a generation, as the
sampler's sigmas are."""


class Timed(Linear):
    """A sum of the last anchors. A subclass says how many, and their weights at a time. `times` is a field of it.

    With numbers for each step as times, a step beyond the last of them is estimated as that one.
    """

    times: Times

    def reach(self) -> int:
        """How many anchors there are weights for, up to 4."""
        raise NotImplementedError

    def at(self, elapsed: Tensor, gaps: list[Tensor]) -> Weights:
        """The weights as in `weights.lagrange`, for one anchor more than there are gaps, of which there may be none."""
        raise NotImplementedError

    def available(self, seen: Seen) -> Tensor:
        """How many anchors may be used: int64, shape ()."""
        return seen.anchors

    def check_times(self) -> None:
        """Raises TypeError or ValueError where `times` or the number of anchors is none that there can be."""
        if not 1 <= self.reach() <= MOST:
            raise ValueError(f"{type(self).__name__}: expected 1 to {MOST} anchors, got {self.reach()}")
        if isinstance(self.times, tuple):
            numbers = [one for one in self.times if isinstance(one, (int, float)) and math.isfinite(one)]
            if len(numbers) < max(len(self.times), 2):
                raise ValueError(f"times: expected a finite number for each step, two at least, got {self.times!r}")
            rising = {later > earlier for earlier, later in itertools.pairwise(numbers)}
            if len(rising) > 1 or len(set(numbers)) < len(numbers):
                raise ValueError(f"times: expected numbers that all rise or all fall, got {self.times!r}")
        elif self.times not in ("steps", "timesteps"):
            expected = "'steps', 'timesteps' or a tuple of numbers, one for each step"
            raise ValueError(f"times: expected {expected}, got {self.times!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        reach = self.reach()
        if reach == 1:
            return (SlotSpec("r"),)
        return SlotSpec("r", history=reach), (anchor_times if self.times == "timesteps" else anchor_steps)(reach)

    def settings(self) -> tuple[Setting, ...]:
        return (Setting("times", self.times),) if isinstance(self.times, tuple) else ()

    def weights(self, seen: Seen) -> Weights:
        reach = self.reach()
        if reach == 1:
            return self.at(seen.index.float(), [])
        now, places = self._moments(seen)
        elapsed = now - places[0]
        gaps = [places[age] - places[age + 1] for age in range(reach - 1)]
        return by_count(self.available(seen), reach, lambda count: self.at(elapsed, gaps[: count - 1]))

    def _moments(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """(the step's time, those of its anchors, the newest first)."""
        if self.times == "timesteps":
            return seen.time, seen.times
        if self.times == "steps":
            return seen.index.float(), seen.steps
        last = len(self.times) - 1
        now = seen.index.clamp(0, last).reshape(1)
        before = seen.steps.clamp(0, last).to(torch.int64)
        table = seen.state["times"]
        return table.index_select(0, now).reshape(()), table.index_select(0, before)


class Series(Timed):
    """A series in TaylorSeer's differences, up to `order`; `first` is how many first steps the schedule runs deep.

    The published code takes no differences before the last of these, so that a term of order i exists i anchors after
    the last but one of them. `order` and `first` are fields of a subclass.
    """

    order: int
    first: int

    def check_series(self) -> None:
        """Raises what `check_times` does, and ValueError for `first` below 1."""
        self.check_times()
        if self.first < 1:
            raise ValueError(f"first: expected a number of steps from 1 on, got {self.first!r}")

    def reach(self) -> int:
        return self.order + 1

    def available(self, seen: Seen) -> Tensor:
        return (seen.anchors - max(self.first - 2, 0)).clamp(min=1)
