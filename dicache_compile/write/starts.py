"""When a generation starts: what a step's timestep, its conditions and the host tell of that.

Plain torch functions over the control slots, traced into the probe's piece.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .control import ROUNDING, RUN, TIMES, UNANNOUNCED

_Found = dict[str, Tensor]


def begin(timestep: Tensor, checksums: Tensor, sizes: Tensor, state: Mapping[str, Tensor]) -> _Found:
    """What is found of a step: "fresh", whether a generation starts with it, and "anew", whether no anchor serves it,
    both bool of shape (); and what `begun` needs.

    A generation starts where the host asks. Where nobody announced a run it also does where the timestep moves against
    its direction, where a generation's first timestep comes again, and where a condition changes that had stayed the
    same. Where only the number of steps is known it does when so many are done, and where the first timestep, or one
    before it, comes after it was left. A condition that changes elsewhere leaves the count as it is, and no anchor.
    """
    # Of a vector the elements that move tell: some may stand at either end, as context that is given.
    times = timestep.float()
    ends = torch.stack((times.amax(), times.amin()))
    moves = torch.sign(times - state[TIMES])  # NaN where the last one had another shape
    move, still = torch.sign(torch.nansum(moves)), (moves == 0).all()
    direction, index, mode = state["direction"], state["index"], state[RUN][0]
    learned = torch.where(direction == 0, move, direction)
    against = move * direction < 0
    changed = ~((checksums - state["checksums"]).abs() <= ROUNDING * sizes)
    other = (changed & state["stable"]).any()

    # Only at the start: second-order samplers visit later timesteps twice. Of different elements only once in a row: a
    # queue of frames may have the same timesteps on every step.
    again = (index == 1) & still & ~(state["repeated"] & (ends[0] != ends[1]))
    gone = (ends - state["first"]) * learned  # how far from the first timestep
    at_first = (gone <= 0).all()
    back = at_first & (state["left"] | (gone < 0).any())
    unannounced, counted = mode == UNANNOUNCED, mode > 0
    fresh = state["restart"] | (unannounced & (against | again | other))
    fresh = fresh | (counted & ((index >= mode) | back | (other & against)))
    return {
        "fresh": fresh,
        "anew": fresh | other,
        # A direction that the second step already contradicts was learned from an abandoned run.
        "unlearned": torch.where(against & (index <= 1), torch.zeros_like(direction), direction),
        "learned": learned,
        "repeated": again & unannounced,
        "stable": ~changed & (state["stable"] | ~still),
        "at_first": at_first,
        "ends": ends,
        TIMES: times,
        "checksums": checksums,
    }


def begun(fresh: Tensor, found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> _Found:
    """The slots then, of what `begin` found, where a generation starts or not."""
    ends = found["ends"]
    return {
        "restart": torch.zeros_like(state["restart"]),
        "index": torch.where(fresh, state[RUN][1], state["index"]),
        "time": ends[0],
        TIMES: found[TIMES],
        "direction": torch.where(fresh, found["unlearned"], found["learned"]),
        "first": torch.where(fresh, ends, state["first"]),
        "left": ~fresh & (state["left"] | ~found["at_first"]),
        "repeated": torch.where(fresh, found["repeated"], state["repeated"]),
        "checksums": found["checksums"],
        "stable": found["stable"],
    }
