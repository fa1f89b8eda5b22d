"""The part of a step that no gate or estimator changes: when a generation starts, what is forced, what is recorded.

Plain torch functions over the control slots, traced into the probe's piece. Every value is a tensor on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_ROWS = 1024  # steps that a stream remembers
LOG_COLUMNS = ("index", "timestep", "deep", "forced", "error", "accumulated", "gamma")
NO_LIMIT = 2**62
MASKED_STEPS = 4096  # of a generation, from its start, that can be deep by their number
NOW = ".now"  # ends the name of a slot that holds what the running generation goes by, of what the host tells
# Slots of streams that decide together: what those of a request share, and what each keeps for itself.
LEADER_TIME, LEADER_REUSES = JOINT = ("leader_time", "leader_reuses")
LED = "led"
SCHEDULE, DEEP_STEPS = "schedule", "deep_steps"  # what the host tells of each generation

_Updates = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ControlSlot:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: float = 0


# What the host tells of each generation, besides the settings of gate and estimator.
TOLD = (
    # Steps of warm-up; the index from which all steps are forced; the most that are reused in a row.
    ControlSlot(SCHEDULE, (3,), torch.int64),
    # Which other steps are forced; the last place is that of all later ones, and never set.
    ControlSlot(DEEP_STEPS, (MASKED_STEPS + 1,), torch.bool),
)


def control_slots(conditions: int, joint: bool) -> tuple[ControlSlot, ...]:
    """What every stream keeps besides the gate's and the estimator's slots, for that many condition inputs."""
    together = (
        ControlSlot(LEADER_TIME, (), torch.float32, math.nan),  # the timestep of the last step that led,
        ControlSlot(LEADER_REUSES, (), torch.bool),  # and what it decided
        ControlSlot(LED, (), torch.bool),  # whether this stream's last step was such a one
    )
    return (
        ControlSlot("restart", (), torch.bool, True),  # the host asks for a new generation
        ControlSlot("clock", (), torch.float32),  # host: the timestep, where the graph itself does not get it
        *TOLD,
        *(ControlSlot(slot.name + NOW, slot.shape, slot.dtype) for slot in TOLD),
        ControlSlot("index", (), torch.int64),  # steps done in this generation
        ControlSlot("anchors", (), torch.int64),  # deep steps done in this generation
        ControlSlot("skipped", (), torch.int64),  # reused steps since the last deep one
        ControlSlot("time", (), torch.float32),  # the last step's timestep
        ControlSlot("direction", (), torch.float32),  # the way the timestep moves: -1, 1; 0 unknown
        ControlSlot("checksums", (conditions,), torch.float32),
        ControlSlot("stable", (conditions,), torch.bool),  # whether a checksum was the same twice
        ControlSlot("log", (LOG_ROWS, len(LOG_COLUMNS)), torch.float32),
        ControlSlot("logged", (), torch.int64),  # rows ever written
        *(together if joint else ()),
    )


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


def begin(timestep: Tensor, checksums: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, _Updates]:
    """(whether a generation starts with this step: bool, shape (); the slots after that is known).

    It does where the host asks, where the timestep moves against its direction, where a generation's first timestep
    comes again, and where a condition changes that had stayed the same.
    """
    # Of a vector or a per-token tensor the largest: tokens given as clean context have 0.
    time = timestep.float().amax()
    move = torch.sign(time - state["time"])
    direction, index = state["direction"], state["index"]
    changed = checksums != state["checksums"]
    against = move * direction < 0
    # Only at the start: second-order samplers visit later timesteps twice.
    again = (index == 1) & (move == 0)
    fresh = state["restart"] | against | again | (changed & state["stable"]).any()
    # A direction that the second step already contradicts was learned from an abandoned run.
    unlearned = torch.where(against & (index <= 1), torch.zeros_like(direction), direction)
    learned = torch.where(direction == 0, move, direction)
    none = torch.zeros_like(index)
    return fresh, {
        "restart": torch.zeros_like(state["restart"]),
        "index": torch.where(fresh, none, index),
        "anchors": torch.where(fresh, none, state["anchors"]),
        "skipped": torch.where(fresh, none, state["skipped"]),
        "time": time,
        "direction": torch.where(fresh, unlearned, learned),
        "checksums": checksums,
        "stable": ~changed,
    }


def in_force(fresh: Tensor, told: Tensor, now: Tensor) -> Tensor:
    """What the host tells, where a generation starts; what the running one goes by, where it goes on."""
    return torch.where(fresh, told, now)


def forced(now: Mapping[str, Tensor], schedule: Tensor, deep_steps: Tensor) -> Tensor:
    """Whether this step runs deep whatever the gate says: bool, shape ()."""
    index = now["index"]
    listed = deep_steps.index_select(0, index.clamp(max=MASKED_STEPS).reshape(1)).reshape(())
    return (index < schedule[0]) | (index >= schedule[1]) | (now["anchors"] == 0) | listed


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


def finish(now: Mapping[str, Tensor], reuse: Tensor) -> _Updates:
    """The counters after the decision."""
    skipped = now["skipped"]
    return {"index": now["index"] + 1, "skipped": torch.where(reuse, skipped + 1, torch.zeros_like(skipped))}


def record(columns: tuple[Tensor, ...], state: Mapping[str, Tensor]) -> _Updates:
    """The log with one more row, in the order of LOG_COLUMNS; the oldest row is overwritten when it is full."""
    row = torch.stack([column.to(torch.float32) for column in columns])
    place = state["logged"] % LOG_ROWS
    return {
        "log": state["log"].index_copy(0, place.reshape(1), row.reshape(1, -1)),
        "logged": state["logged"] + 1,
    }
