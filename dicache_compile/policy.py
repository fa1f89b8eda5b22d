"""What a gate and an estimator are. A new one is a frozen dataclass in a file of its own, passed in the config.

Both are written in plain torch operations on tensors, without a Python branch on a value: the same code runs eagerly
in tests, and is traced once into the graph of the step. `x` and `h` come in the stream's dtype and state in its
storage dtype, so each method converts to float32 before it computes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

State = Mapping[str, Tensor]
"""The tensors that `slots()` asked for, by the names in `SlotSpec.reads`, and what `settings()` names."""


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """A tensor that a gate or an estimator keeps from step to step."""

    name: str
    per_stream: bool  # True: one for each stream
    scalar: bool  # True: float32 of shape (); False: of the stream's shape, in `state_dtype`
    history: int = (
        0  # how many anchors back it is kept, if it is written on deep steps only; 0: one value, kept as it is
    )

    measured: bool = False  # whether differences of it decide: then float8, which is too coarse for that, is not used

    @property
    def reads(self) -> tuple[str, ...]:
        """The names under which it is read: "r" with a history of 2 is "r1", the newest, and "r2"."""
        return tuple(f"{self.name}{age + 1}" for age in range(self.history)) or (self.name,)


MOST_BITS = sys.float_info.max_exp - 1  # an int of more bits may be beyond every float


@dataclass(frozen=True, slots=True)
class Setting:
    """A number, or several, that the host tells a gate or an estimator: another one compiles nothing."""

    name: str  # under which `state` has it: float32, of shape () or, for several, (how many,)
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


@runtime_checkable
class Adjustable(Protocol):
    """A gate or an estimator with settings. All of its methods find them in `state`; they change between generations.

    Whatever else it is made of is a part of the compiled graph.
    """

    def settings(self) -> tuple[Setting, ...]: ...


GATE, ESTIMATOR = "gate", "estimator"  # whose settings


def setting_slot(role: str, name: str) -> str:
    """The slot in which the host leaves a setting; its name is no other slot's."""
    return f"{role}.{name}"


def settings_of(policy: object) -> tuple[Setting, ...]:
    """The settings of a gate or an estimator; most have none."""
    return policy.settings() if isinstance(policy, Adjustable) else ()


@runtime_checkable
class Decider(Protocol):
    """Says whether this step may reuse, by an error that a `Gate` or an `EstimateGate` takes."""

    def slots(self) -> tuple[SlotSpec, ...]: ...

    def follow(self, x: Tensor, h: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        """What one stream's slots become, on every step; `reuse` (bool, shape ()) says what was decided."""
        ...

    def judge(self, error: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """(may this step reuse: bool, the error that was compared: float32), both of shape ().

        A NaN must give False. Where streams decide together (`joint`), the first one's word overrules the others'.
        `state` holds the slots that are not per stream, back at 0 on a generation's first step.
        """
        ...

    def settle(self, compared: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        """What the slots that are not per stream become, once it is known whether the step reuses."""
        ...


@runtime_checkable
class Gate(Decider, Protocol):
    """Takes the error from what the trunk is given and what the probe makes of it."""

    def measure(self, x: Tensor, h: Tensor, state: State) -> Tensor:
        """The error of one stream: float32, shape (). The step's error is the largest of all streams'.

        On the first step of a generation the state is stale and the result is not used.
        """
        ...


@runtime_checkable
class EstimateGate(Decider, Protocol):
    """Takes the error from how well the estimator does where the truth is known; needs a `CheckedEstimator`."""

    def measure_estimate(self, check: Tensor) -> Tensor:
        """As `Gate.measure`, from what `CheckedEstimator.check` gave for the stream."""
        ...


@runtime_checkable
class Estimator(Protocol):
    """Says what stands in for the deep blocks' result."""

    def slots(self) -> tuple[SlotSpec, ...]:
        """All per stream."""
        ...

    def weigh(self, x: Tensor, h: Tensor, anchors: Tensor, state: State) -> Tensor:
        """What the estimate needs besides tensors at hand, computed in the probe's part; recorded as gamma, shape ().

        `anchors` is how many this generation has had, int64 of shape (). NaN where there is no gamma.
        """
        ...

    def estimate(self, x: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        """The stand-in for y, float32, of x's shape; called with at least one anchor."""
        ...

    def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
        """What the slots become on a step that ran the deep blocks; one with a history gets a new newest."""
        ...


@runtime_checkable
class CheckedEstimator(Estimator, Protocol):
    """An estimator that can be tried on the probe, whose own result is known on every step."""

    def check(self, x: Tensor, h: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        """The error of the estimate that it would make of h: float32, shape (). Called as `Gate.measure` is."""
        ...


@runtime_checkable
class FollowingEstimator(Estimator, Protocol):
    """An estimator that keeps count of the steps between its anchors."""

    def follow(self, gamma: Tensor, reuse: Tensor, anchors: Tensor, state: State) -> dict[str, Tensor]:
        """What its slots that are scalars become on every step, as soon as it is decided; `reuse` (bool, shape ())
        says what. `anchors` is as in `Estimator.weigh`; `estimate` and `anchor` then see the new values.
        """
        ...
