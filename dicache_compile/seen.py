"""What the methods of a gate and an estimator see, what is kept for them, and what the host tells them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""The tensors that `slots()` asked for, by the names in `SlotSpec.reads`, and what `settings()` names."""

Aid: TypeAlias = "Tensor | tuple[Tensor, ...] | None"
"""What an estimator takes from before the decision: nothing, a number, several, or one a channel or a row."""

_ABSENT: Any = None  # of what a method does not see


@dataclass(frozen=True, slots=True)
class Seen:
    """One carried value on one step, as the methods of a gate or an estimator see it.

    x, h and y come in their own dtype and state in its storage dtype, so each method converts to float32 before it
    computes. All are tensors on the model's device. On the first step of a generation state is stale.
    """

    x: Tensor  # where it enters the site
    h: Tensor  # where the probe leaves it, or what `Gate.looks_at` says; x where there is no probe
    state: State  # of the gate, or of the estimator
    index: Tensor  # which step of the generation this is, from 0: int64, shape ()
    time: Tensor  # the timestep, of several the largest: float32, shape ()
    anchors: Tensor  # how many there have been that serve, before this step: int64, shape ()
    since: Tensor  # steps that were reused since the last anchor, before this one: int64, shape ()
    y: Tensor = _ABSENT  # where it leaves the site; in `anchor` and `learn` alone
    aid: Any = None  # what `Estimator.aid` gave for this step
    error: Tensor = _ABSENT  # the step's, in `judge`; the one that was compared, in `settle`
    check: Tensor = _ABSENT  # what `CheckedEstimator.check` gave, in `EstimateGate.measure_estimate`
    reused: Tensor = _ABSENT  # whether this step is, in what runs after the decision: bool, shape ()
    places: Tensor = _ABSENT  # in `TokenEstimator.renew`: which tokens y has, as `pick` gave them
    before: Tensor = _ABSENT  # in `judge` and `settle`: whether the rule before reused on this step: bool, shape ()

    @property
    def times(self) -> Tensor:
        """The timesteps of the last anchors, the newest first: float32, shape (how many). Needs `anchor_times`."""
        return self._of_anchors(ANCHOR_TIME)

    @property
    def steps(self) -> Tensor:
        """Which steps the last anchors were, the newest first: float32, shape (how many). Needs `anchor_steps`."""
        return self._of_anchors(ANCHOR_STEP)

    @property
    def partner(self) -> Tensor:
        """Y of the call of the same step that the estimator goes by, of x's shape. Needs `partner_result`."""
        return self.state[PARTNER]

    def _of_anchors(self, slot: str) -> Tensor:
        names = itertools.takewhile(lambda name: name in self.state, (f"{slot}{age}" for age in itertools.count(1)))
        return torch.stack([self.state[name] for name in names])


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """A tensor that a gate or an estimator keeps from step to step."""

    name: str
    # Of the carried value's shape, in `state_dtype`; or float32, of `shape`, or (..., T, 1), a number for each token.
    like: Literal["carried", "number", "tokens"] = "carried"
    shared: bool = False  # one for all carried values, as a gate may have; else one for each
    history: int = 0  # how many anchors back it is kept, if only `anchor` writes it; 0: one value, kept as it is
    measured: bool = False  # whether differences of it decide: then float8, which is too coarse for that, is not used
    shape: tuple[int, ...] = ()  # of a "number", which then is several

    @property
    def reads(self) -> tuple[str, ...]:
        """The names under which it is read: "r" with a history of 2 is "r1", the newest, and "r2"."""
        return tuple(f"{self.name}{age + 1}" for age in range(self.history)) or (self.name,)


# Slots that are written for an estimator that asks for them.
GIVEN_SLOTS = ANCHOR_TIME, ANCHOR_STEP, PARTNER = ("anchor_time", "anchor_step", "partner")


def anchor_times(count: int) -> SlotSpec:
    """The slot of an estimator that reads `Seen.times`, of that many anchors. It is written for it."""
    return SlotSpec(ANCHOR_TIME, "number", history=max(count, 2))


def anchor_steps(count: int) -> SlotSpec:
    """The slot of an estimator that reads `Seen.steps`, of that many anchors. It is written for it."""
    return SlotSpec(ANCHOR_STEP, "number", history=max(count, 2))


def partner_result() -> SlotSpec:
    """The slot of a `GuidedEstimator`, for `Seen.partner`. It is written for it; a request's streams have one."""
    return SlotSpec(PARTNER, measured=True)


MOST_BITS = sys.float_info.max_exp - 1  # an int of more bits may be beyond every float


@dataclass(frozen=True, slots=True)
class Setting:
    """A number, or several, that the host tells a gate or an estimator: another one compiles nothing."""

    name: str  # under which `Seen.state` has it: float32, of shape () or, for several, (how many,)
    value: float | tuple[float, ...]

    def __post_init__(self) -> None:
        for number in self.value if isinstance(self.value, tuple) else (self.value,):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise TypeError(f"the setting {self.name!r}: expected a number, got {type(number).__name__}")
            if isinstance(number, int) and number.bit_length() > MOST_BITS:
                raise ValueError(f"the setting {self.name!r}: expected what a float can hold, got an int beyond it")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.value),) if isinstance(self.value, tuple) else ()
