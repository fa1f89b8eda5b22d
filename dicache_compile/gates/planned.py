"""Gates that decide after a deep step for the steps to come: AdaCache (arXiv 2411.02397), BWCache (2509.13789)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import relative_l1
from ..rules import LearningGate, Seen, SlotSpec
from .motion import Motion


@dataclass(frozen=True, slots=True)
class Planned(LearningGate):
    """After a deep step looks up how many steps may follow without one, by how much the result changed.

    The change is mean|y - y_1| / mean|y_1|, y_1 the result of the deep step before; with `per_step`, over the number of
    steps between both. `plan` has pairs (bound, reused steps): the first one whose bound is not below the change
    counts, and above the last none is reused. It looks at no block before it decides: `probe_depth=0`.

    AdaCache's codebook {0.03: 12, ...} has the distance to the next deep step: one more than is reused.

    `of` says whose change counts: that of the rule's first site, the mean of those of "all" sites, as BWCache's is of
    all blocks, or that of the result with this number, in the order in which they run. With `residual` it is that of
    y - x, what the site adds. `motion` multiplies it by AdaCache's measure of what moves. With `half_of`, the number of
    steps, BWCache's end: once a plan was made at step k, the last k / 2 steps run deep.

    Raises ValueError for a plan whose bounds do not rise, or that reuses a negative number of steps, for less than one
    step, and for another `of`.
    """

    plan: tuple[tuple[float, int], ...]
    per_step: bool = True
    of: Literal["first", "all"] | int = "first"
    residual: bool = False
    motion: Motion | None = None
    half_of: int | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound, _ in self.plan]
        if not bounds or bounds != sorted(set(bounds)) or not bounds[0] >= 0 or any(math.isnan(one) for one in bounds):
            raise ValueError(f"plan: expected pairs (bound, reused steps) with rising bounds, got {self.plan!r}")
        if any(isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 for _, steps in self.plan):
            raise ValueError(f"plan: expected whole numbers of reused steps from 0 on, got {self.plan!r}")
        steps = self.half_of
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"half_of: expected a whole number of steps from 1 on, got {steps!r}")
        if self.of not in ("first", "all") and (type(self.of) is not int or self.of < 0):
            raise ValueError(f"of: expected 'first', 'all' or the number of a result from 0 on, got {self.of!r}")

    @property
    def learns_from(self) -> Literal["first", "all"] | int:
        return self.of

    def slots(self) -> tuple[SlotSpec, ...]:
        kept = [SlotSpec("y_deep", measured=True), SlotSpec("planned", "number", shared=True)]
        if self.of == "all":
            kept.append(SlotSpec("changes", "number", shared=True, shape=(2,)))  # their sum, and how many
        if self.half_of is not None:
            kept.append(SlotSpec("first_plan", "number", shared=True))  # at which step; 0: none yet
        if self.motion is not None:
            kept.append(SlotSpec("moves", "number", shared=True))  # by how much more than 1, on the last deep step
        return tuple(kept)

    def measure(self, seen: Seen) -> Tensor:
        """How many steps were reused since the last deep one."""
        return seen.since.float()

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        may = seen.error < seen.state["planned"]
        if self.half_of is not None:
            first = _first_plan(seen)
            may = may & ~((first > 0) & (seen.index >= self.half_of - first / 2))
        return may, seen.error

    def settle(self, seen: Seen) -> dict[str, Tensor]:
        new = {"changes": torch.zeros_like(seen.state["changes"])} if self.of == "all" else {}
        return new | ({"first_plan": _first_plan(seen)} if self.half_of is not None else {})

    def learn(self, seen: Seen) -> dict[str, Tensor]:
        y = seen.y - seen.x if self.residual else seen.y
        change, new = relative_l1(y, seen.state["y_deep"]), {"y_deep": y}
        if self.of == "all":  # the mean of those so far, which for the last one is that of all
            new["changes"] = seen.state["changes"] + torch.stack((change, torch.ones_like(change)))
            change = new["changes"][0] / new["changes"][1]
        if self.per_step:
            change = change / (seen.since.float() + 1)
        if self.motion is not None:
            moves = self.motion.measure(y, seen.index)
            turned = (moves - 1 - seen.state["moves"]) / (seen.since.float() + 1)
            change = change * (moves + (self.motion.slope * turned).abs())
            new["moves"] = torch.where(seen.anchors > 0, moves - 1, torch.zeros_like(moves))
        planned = torch.zeros_like(change)
        for bound, steps in reversed(self.plan):
            planned = torch.where(change <= bound, float(steps), planned)
        return {**new, "planned": torch.where(seen.anchors > 0, planned, torch.zeros_like(planned))}


def _first_plan(seen: Seen) -> Tensor:
    """The deep step at which steps were planned for the first time; 0: none yet."""
    first, last_deep = seen.state["first_plan"], (seen.index - seen.since - 1).float()
    return torch.where((first == 0) & (seen.state["planned"] > 0), last_deep, first)
