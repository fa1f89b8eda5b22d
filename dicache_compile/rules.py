"""What a gate and an estimator are. A new one is a frozen dataclass in a file of its own, passed in the config.

Both are written in plain torch operations on tensors, without a Python branch on a value: the same code runs eagerly
in tests, and is traced once into the graph of the step. Each method has one argument, what is `Seen`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

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
    h: Tensor  # where the probe leaves it; x where there is no probe
    state: State  # of the gate, or of the estimator
    index: Tensor  # which step of the generation this is, from 0: int64, shape ()
    time: Tensor  # the timestep, of several the largest: float32, shape ()
    anchors: Tensor  # how many there have been that serve, before this step: int64, shape ()
    since: Tensor  # steps that were reused since the last anchor, before this one: int64, shape ()
    y: Tensor = _ABSENT  # where it leaves the site; in `anchor` alone
    aid: Any = None  # what `Estimator.aid` gave for this step
    error: Tensor = _ABSENT  # the step's, in `judge`; the one that was compared, in `settle`
    check: Tensor = _ABSENT  # what `CheckedEstimator.check` gave, in `EstimateGate.measure_estimate`
    reused: Tensor = _ABSENT  # whether this step is, in what runs after the decision: bool, shape ()
    before: Tensor = _ABSENT  # in `judge` and `settle`: whether the rule before reused on this step: bool, shape ()

    @property
    def times(self) -> Tensor:
        """The timesteps of the last anchors, the newest first: float32, shape (how many). Needs `anchor_times`."""
        return self._of_anchors(ANCHOR_TIME)

    @property
    def steps(self) -> Tensor:
        """Which steps the last anchors were, the newest first: float32, shape (how many). Needs `anchor_steps`."""
        return self._of_anchors(ANCHOR_STEP)

    def _of_anchors(self, slot: str) -> Tensor:
        names = itertools.takewhile(lambda name: name in self.state, (f"{slot}{age}" for age in itertools.count(1)))
        return torch.stack([self.state[name] for name in names])


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """A tensor that a gate or an estimator keeps from step to step."""

    name: str
    like: Literal["carried", "number"] = "carried"  # of the carried value's shape, in `state_dtype`; or float32, ()
    shared: bool = False  # one for all carried values, as a gate may have; else one for each
    history: int = 0  # how many anchors back it is kept, if only `anchor` writes it; 0: one value, kept as it is
    measured: bool = False  # whether differences of it decide: then float8, which is too coarse for that, is not used

    @property
    def reads(self) -> tuple[str, ...]:
        """The names under which it is read: "r" with a history of 2 is "r1", the newest, and "r2"."""
        return tuple(f"{self.name}{age + 1}" for age in range(self.history)) or (self.name,)


# Slots that are written for an estimator that asks for them.
GIVEN_SLOTS = ANCHOR_TIME, ANCHOR_STEP = ("anchor_time", "anchor_step")


def anchor_times(count: int) -> SlotSpec:
    """The slot of an estimator that reads `Seen.times`, of that many anchors. It is written for it."""
    return SlotSpec(ANCHOR_TIME, "number", history=max(count, 2))


def anchor_steps(count: int) -> SlotSpec:
    """The slot of an estimator that reads `Seen.steps`, of that many anchors. It is written for it."""
    return SlotSpec(ANCHOR_STEP, "number", history=max(count, 2))


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


GATE, ESTIMATOR = "gate", "estimator"  # whose settings


def setting_slot(role: str, name: str) -> str:
    """The slot in which the host leaves a setting; its name is no other slot's."""
    return f"{role}.{name}"


class _Keeping(Protocol):
    """What gates and estimators have in common. A subclass leaves out what it has no use for."""

    def slots(self) -> tuple[SlotSpec, ...]:
        """The tensors that are kept for it."""
        return ()

    def settings(self) -> tuple[Setting, ...]:
        """Numbers that change without compiling. Whatever else it is made of is a part of the compiled graph."""
        return ()


@runtime_checkable
class Decider(_Keeping, Protocol):
    """Says whether this step may reuse, by an error that a `Gate` or an `EstimateGate` takes."""

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """(may this step reuse: bool, the error that was compared: float32), both of shape ().

        `seen.error` is the step's. A NaN must give False. Where streams decide together (`joint`), the first one's word
        overrules the others'. `seen.state` holds the shared slots, back at 0 on a generation's first step; of the
        carried values it shows the first.
        """
        ...

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        """What a carried value's slots become, on every step; `seen.reused` says what was decided."""
        return {}

    def settle(self, seen: Seen) -> dict[str, Tensor]:
        """What the shared slots become, once it is known whether the step reuses. Sees what `judge` does."""
        return {}


@runtime_checkable
class Gate(Decider, Protocol):
    """Takes the error from what the site is given and what the probe makes of it."""

    def measure(self, seen: Seen) -> Tensor:
        """The error of one carried value: float32, shape (). The step's error is the largest of all.

        On the first step of a generation the state is stale and the result is not used.
        """
        ...


@runtime_checkable
class EstimateGate(Decider, Protocol):
    """Takes the error from how well the estimator does where the truth is known; needs a `CheckedEstimator`."""

    def measure_estimate(self, seen: Seen) -> Tensor:
        """As `Gate.measure`, from `seen.check`."""
        ...


@runtime_checkable
class Estimator(_Keeping, Protocol):
    """Says what stands in for a site's result. None of its slots is shared."""

    @property
    def probes(self) -> bool:
        """Whether it looks at h. On a schedule no block is run for one that does not, and h is x."""
        return True

    def aid(self, seen: Seen) -> Aid:
        """What the estimate needs besides tensors at hand, computed before the decision: recorded as gamma if it is one
        number. NaN where there is none yet.
        """
        return None

    def estimate(self, seen: Seen) -> Tensor:
        """The stand-in for y, float32, of x's shape; called with at least one anchor."""
        ...

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        """What the slots become on a step that ran the site; one with a history gets a new newest."""
        ...


@runtime_checkable
class CheckedEstimator(Estimator, Protocol):
    """An estimator that can be tried on the probe, whose own result is known on every step."""

    def check(self, seen: Seen) -> Tensor:
        """The error of the estimate that it would make of h: float32, shape (). Called as `Gate.measure` is."""
        ...


@runtime_checkable
class FollowingEstimator(Estimator, Protocol):
    """An estimator that keeps count of the steps between its anchors."""

    def follow(self, seen: Seen) -> dict[str, Tensor]:
        """What its slots that are numbers become on every step, as soon as it is decided. `estimate` and `anchor` then
        see the new values.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """What a step decides and estimates with."""

    gate: Decider | None  # None: a schedule decides, which the host tells
    estimator: Estimator
    state_dtype: torch.dtype | None = None  # None: each carried value's own
    joint: bool = False  # whether the streams of a request decide together

    def by(self, role: str) -> Decider | Estimator:
        """The gate, where there is one, or the estimator."""
        found = self.gate if role == GATE else self.estimator
        assert found is not None
        return found

    def settings(self) -> dict[str, Setting]:
        """The settings of gate and estimator, by slot."""
        return {
            setting_slot(role, setting.name): setting for role in self._roles() for setting in self.by(role).settings()
        }

    def slots(self) -> tuple[SlotSpec, ...]:
        """What is kept for the gate, then for the estimator."""
        return tuple(spec for role in self._roles() for spec in self.by(role).slots())

    def _roles(self) -> tuple[str, ...]:
        return (ESTIMATOR,) if self.gate is None else (GATE, ESTIMATOR)
