"""What a gate and an estimator are. A new one is a frozen dataclass in a file of its own, passed in the config.

Both are written in plain torch operations on tensors, without a Python branch on a value: the same code runs eagerly
in tests, and is traced once into the graph of the step. Each method has one argument, what is `Seen`.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from .seen import (
    ANCHOR_STEP,
    ANCHOR_TIME,
    GIVEN_SLOTS,
    MOST_BITS,
    PARTNER,
    Aid,
    Seen,
    Setting,
    SlotSpec,
    State,
    anchor_steps,
    anchor_times,
    partner_result,
)

__all__ = [
    "ANCHOR_STEP",
    "ANCHOR_TIME",
    "ESTIMATOR",
    "GATE",
    "GIVEN_SLOTS",
    "MOST_BITS",
    "PARTNER",
    "Aid",
    "CheckedEstimator",
    "Decider",
    "EstimateGate",
    "Estimator",
    "FollowingEstimator",
    "Gate",
    "GuidedEstimator",
    "KeepingEstimator",
    "LearningGate",
    "Seen",
    "Setting",
    "SlotSpec",
    "State",
    "TokenEstimator",
    "anchor_steps",
    "anchor_times",
    "partner_result",
    "setting_slot",
]

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

    @property
    def looks_at(self) -> Literal["probe", "modulated"]:
        """What h is. "modulated": what the first block gives to its first linear, which is x normalised and modulated
        by the timestep. No more than that runs of the block before the decision; it needs `probe_depth=0`.
        """
        return "probe"

    @property
    def first_alone(self) -> bool:
        """Of several carried values, whether it measures the denoised one alone. False: each, and the largest error
        counts.
        """
        return False

    def measure(self, seen: Seen) -> Tensor:
        """The error of one carried value: float32, shape (). The step's error is the largest of those measured.

        On the first step of a generation the state is stale and the result is not used.
        """
        ...


@runtime_checkable
class LearningGate(Gate, Protocol):
    """A gate that learns from what the site gives, on steps that run it."""

    @property
    def learns_from(self) -> Literal["first", "all"] | int:
        """Of which carried values `learn` is called: of the "first", of "all" in the order in which they run, or of the
        one with this number in that order.
        """
        return "first"

    def learn(self, seen: Seen) -> dict[str, Tensor]:
        """What slots become on a step that ran the site, where `seen.y` is known. It sees the carried value's slots and
        the shared ones, as `follow`, `settle` and its own call before left them: before a generation's first anchor
        they are stale.
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


@runtime_checkable
class KeepingEstimator(Estimator, Protocol):
    """An estimator that keeps its own estimates, too."""

    def keep(self, seen: Seen) -> dict[str, Tensor]:
        """What slots become on a reused step, where `seen.y` is what stands in. None of them has a history, which is of
        anchors.
        """
        ...


@runtime_checkable
class GuidedEstimator(Estimator, Protocol):
    """An estimator for one of guidance's calls, which goes by what another call of the same step gave.

    It has the slot `partner_result`. A site is reused in the calls of the streams that are named `stream` alone, and
    only where a call of `partner` in the same request has had the same timestep and the same latents, and the last
    anchor had such a one too. Anywhere else the step runs deep.
    """

    @property
    def stream(self) -> str:
        """The name of the stream that it stands in for, without that of its request."""
        ...

    @property
    def partner(self) -> str:
        """The name of the stream that it goes by."""
        ...


@runtime_checkable
class TokenEstimator(Estimator, Protocol):
    """An estimator for which a reused step runs each site on some of its tokens, as parts of blocks allow.

    x is then what the site's first linear takes, which has y's shape, [..., T, C]. `estimate` sees the slots as `renew`
    left them. None of its slots has a history.
    """

    @property
    def share(self) -> float:
        """Of the tokens, how many a reused step computes: for what is told of it."""
        ...

    @property
    def otherwise(self) -> Estimator:
        """What stands in for a site that cannot run on some tokens alone, as an attention."""
        ...

    def pick(self, seen: Seen) -> Tensor:
        """Which tokens a reused step computes: int64, [..., k], none twice. The shape must follow from x's."""
        ...

    def renew(self, seen: Seen) -> dict[str, Tensor]:
        """What all of its slots become on a reused step, where `seen.y` is the site's result for the tokens at
        `seen.places`, [..., k, C].
        """
        ...
