"""The part of a step that no gate or estimator changes: when a generation starts, what is forced, what is recorded.

Plain torch functions over the control slots, traced into the probe's piece. Every value is a tensor on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..program import Slot, of_rule
from .record import LOG_ROWS

NO_LIMIT = 2**62
MASKED_STEPS = 4096  # of a generation, from its start, that can be deep by their number
NOW = ".now"  # ends the name of a slot that holds what the running generation goes by, of what the host tells
# Slots of streams that decide together: what those of a request share, and what each keeps for itself.
LEADER_TIME, LEADER_REUSES = JOINT = ("leader_time", "leader_reuses")
PARTNER_MARK = "partner_mark"
WHEN_SHARED = (LEADER_TIME, PARTNER_MARK)  # which tell of which step it is; NaN: of none
LED = "led"
CLOCK = "clock"
LIMITS, DEEP_STEPS = "limits", "deep_steps"  # what the host tells of each generation, for a rule
ANCHORS, SKIPPED = "anchors", "skipped"
# The slot in which the host says what starts generations, and the index of a generation's first step.
RUN = "run"
UNANNOUNCED, ANNOUNCED = 0, -1  # by the timesteps; by the host alone. A number of steps: when so many are done
TIMES = "times"  # the slot of the last step's timestep in its own shape
# How far a condition's checksum may move, in shares of the sum of its elements' sizes: computing it anew rounds each
# element a few times by 2**-24 of it, and a weight is below 1.5.
ROUNDING = 2.0**-21

_Updates = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ControlSlot:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: float = 0
    of_request: bool = False  # whether the streams of a request have one together
    common: bool = False  # whether the rows of a batch have one together, though each decides for itself


# What the host tells of each generation, besides the settings of gate and estimator.
TOLD = (
    # Steps of warm-up; the index from which all steps are forced; the most that are reused in a row.
    ControlSlot(LIMITS, (3,), torch.int64),
    # Which other steps are forced; the last place is that of all later ones, and never set.
    ControlSlot(DEEP_STEPS, (MASKED_STEPS + 1,), torch.bool),
)


def step_slots(conditions: int, columns: int) -> tuple[ControlSlot, ...]:
    """What every stream keeps whatever its rules are, for that many condition inputs and columns of its record."""
    return (
        ControlSlot("restart", (), torch.bool, True),  # the host asks for a new generation
        ControlSlot(CLOCK, (), torch.float32),  # host: the timestep, where the graph itself does not get it
        ControlSlot(RUN, (2,), torch.int64),
        ControlSlot("index", (), torch.int64),  # steps done in this generation
        ControlSlot("time", (), torch.float32),  # the last step's timestep; of several the largest
        ControlSlot("direction", (), torch.float32),  # the way the timestep moves: -1, 1; 0 unknown
        ControlSlot("first", (2,), torch.float32, math.nan),  # the generation's first: the largest, the smallest
        ControlSlot("left", (), torch.bool),  # whether the timestep has left that
        ControlSlot("repeated", (), torch.bool),  # whether the generation began because the timestep stood still
        ControlSlot("checksums", (conditions,), torch.float32),
        ControlSlot("stable", (conditions,), torch.bool),  # whether it stayed the same while the timestep moved
        ControlSlot("log", (LOG_ROWS, columns), torch.float32, common=True),
        ControlSlot("logged", (), torch.int64, common=True),  # rows ever written
    )


def rule_slots(joint: bool) -> tuple[ControlSlot, ...]:
    """What is kept for each rule besides the gate's and the estimator's slots."""
    together = (
        ControlSlot(LEADER_TIME, (), torch.float32, math.nan, True),  # the timestep of the last step that led,
        ControlSlot(LEADER_REUSES, (), torch.bool, 0, True),  # and what it decided
        ControlSlot(LED, (), torch.bool),  # whether this stream's last step was such a one
    )
    return (
        *TOLD,
        *(ControlSlot(slot.name + NOW, slot.shape, slot.dtype) for slot in TOLD),
        ControlSlot(ANCHORS, (), torch.int64),  # deep steps done since there were none that serve
        ControlSlot(SKIPPED, (), torch.int64),  # reused steps since the last deep one
        *(together if joint else ()),
    )


def as_slots(
    slots: Sequence[ControlSlot], device: torch.device, rule: int = 0, rows: fx.Node | None = None
) -> list[Slot]:
    """`rows`: a node with a row for each that decides for itself; None: all decide together."""
    found = []
    for one in slots:
        like, name = None if one.common else rows, of_rule(one.name, rule)
        of = {"of_rows": like is not None, "of_request": one.of_request}
        found.append(Slot(name, like, one.shape, one.dtype, device, one.initial, **of))
    return found


def checksum(condition: Tensor) -> Tensor:
    """A number that tells two prompts apart: float32, shape (). Depends on the order of the elements."""
    flat = condition.reshape(-1).float()
    # Each place weighs in [0.5, 1.5), by Fibonacci hashing (Knuth, TAOCP 3, section 6.4): 16 of the bits of its product
    # with the golden ratio's 32. There is no division in it, which 64-bit numbers are slow at, and no period of 65536.
    # The mask changes nothing but that Inductor multiplies numbers then: a product of places would become a part of
    # its index arithmetic, which on a GPU has 32 bits, and the kernel would not compile.
    place = torch.arange(condition.numel(), device=condition.device) & 0x7FFFFFFF
    upper = ((place * 0x9E3779B1) >> 16) & 0xFFFF
    return (flat * (upper.to(torch.int32) * 2.0**-16 + 0.5)).sum()


def size(condition: Tensor) -> Tensor:
    """The sum of a condition's elements' sizes: float32, shape ()."""
    return condition.float().abs().sum()


def nothing(condition: Tensor) -> Tensor:
    """0 in the form of a size: of a condition in whole numbers, which no rounding changes."""
    return torch.zeros((), device=condition.device)


def go_on(timestep: Tensor, state: Mapping[str, Tensor]) -> tuple[_Updates, _Updates]:
    """(the index and the time, the slots then) of a step of which the host knows that it goes on with a generation, and
    that no condition has changed.
    """
    times, index = timestep.float(), copied(state["index"])
    time = torch.stack((times.amax(), times.amin()))[0]
    still = (times == state[TIMES]).all()
    updates = {"index": index + 1, "time": time, TIMES: times, "stable": state["stable"] | ~still}
    return {"index": index, "time": time}, updates


def copied(number: Tensor) -> Tensor:
    return number.clone()


def reused(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def not_forced(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def serving(anew: Tensor, anchors: Tensor, skipped: Tensor) -> _Updates:
    """A rule's counters before the decision: nothing where no anchor serves."""
    none = torch.zeros_like(anchors)
    return {ANCHORS: torch.where(anew, none, anchors), SKIPPED: torch.where(anew, none, skipped)}


def without_anchors(anew: Tensor, anchors: Tensor) -> Tensor:
    """Whether no anchor serves, or there is none."""
    return anew | (anchors == 0)


def in_force(fresh: Tensor, told: Tensor, now: Tensor) -> Tensor:
    """What the host tells, where a generation starts; what the running one goes by, where it goes on."""
    return torch.where(fresh, told, now)


def forced(now: Mapping[str, Tensor], limits: Tensor, deep_steps: Tensor) -> Tensor:
    """Whether this step runs deep whatever the gate says: bool, shape ()."""
    index = now["index"]
    listed = deep_steps.index_select(0, index.clamp(max=MASKED_STEPS).reshape(1)).reshape(())
    return (index < limits[0]) | (index >= limits[1]) | (now["anchors"] == 0) | listed


def may_reuse(forced: Tensor, skipped: Tensor, limits: Tensor) -> Tensor:
    """Whether the step may reuse if its error is small enough."""
    return ~forced & (skipped < limits[2])


def unless(may: Tensor, deep: Tensor) -> Tensor:
    return may & ~deep


def decide_together(
    now: Mapping[str, Tensor], state: Mapping[str, Tensor], may: Tensor, within: Tensor, error: Tensor
) -> tuple[Tensor, _Updates]:
    """(whether this step reuses, the slots after that) where the streams of a request decide together.

    The first stream at a timestep leads: it reuses where it `may` and its error is `within` the threshold. The others
    do as it did where they may, unless their error is infinite or no number.
    """
    # A stream that led at this timestep and is called at it again, as by second-order samplers, leads again.
    again = state[LED] & (state["time"] == now["time"])
    leads = again | (state[LEADER_TIME] != now["time"])
    reuse = may & torch.where(leads, within, state[LEADER_REUSES] & (error < math.inf))
    return reuse, {
        LEADER_TIME: now["time"],
        LEADER_REUSES: torch.where(leads, reuse, state[LEADER_REUSES]),
        LED: leads,
    }


def next_index(index: Tensor) -> Tensor:
    return index + 1


def skipped_after(skipped: Tensor, reuse: Tensor) -> Tensor:
    return torch.where(reuse, skipped + 1, torch.zeros_like(skipped))


def asked_first(like: Tensor) -> Tensor:
    """`Seen.before` of the first rule, and of one inside of another: nothing is reused before."""
    return torch.zeros_like(like)
