"""What a rule needs that stands in for one call of guidance by what another call of the same step gave.

The partner leaves its result, with a mark of its step, in slots that all streams of a request have. Who goes by it
compares that mark with its own: neither the order of calls nor one that failed can make a step of it that it is not.
The functions are traced into the pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..rules import GuidedEstimator
from .control import PARTNER_MARK, ROUNDING, ControlSlot, checksum, size

# What a stream is to a rule, which the host says. One that is neither runs deep and leaves nothing.
ROLE = "role"
NEITHER, GIVES, TAKES = range(3)
PARTNER_EPOCH, PAIRED = "partner_epoch", "paired"
UNPAIRED = -1
MARK, MET = "mark", "met"  # what is known of the step


def guidance_slots() -> tuple[ControlSlot, ...]:
    """What is kept for such a rule besides its partner's result."""
    return (
        ControlSlot(ROLE, (), torch.int64, common=True),
        # The partner's last step: its timestep, and the checksum of its latents.
        ControlSlot(PARTNER_MARK, (2,), torch.float32, math.nan, True),
        # How often a generation of the partner has begun, or its conditions have changed.
        ControlSlot(PARTNER_EPOCH, (), torch.int64, 0, True),
        # The epoch of the partner's result that the last anchor was made with.
        ControlSlot(PAIRED, (), torch.int64, UNPAIRED),
    )


def role_of(estimator: GuidedEstimator, name: str) -> int:
    """What a stream of that full name, as "request/cond", is to a rule with this estimator."""
    return {estimator.partner: GIVES, estimator.stream: TAKES}.get(name.rpartition("/")[2], NEITHER)


def meet(time: Tensor, latents: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(this step's mark, whether the partner's step is this one, whether the step has to run deep)."""
    mark, theirs = torch.stack((time, checksum(latents))), state[PARTNER_MARK]
    # Graphs of other shapes may add up in another order. NaN compares false.
    near = (mark[1] - theirs[1]).abs() <= ROUNDING * size(latents)
    met = (state[ROLE] == TAKES) & (mark[0] == theirs[0]) & near
    return mark, met, ~(met & (state[PAIRED] == state[PARTNER_EPOCH]))


def met_after(mark: Tensor, met: Tensor, anew: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the slots become on a step that ran the site."""
    gives, epoch = state[ROLE] == GIVES, state[PARTNER_EPOCH]
    return {
        PARTNER_MARK: torch.where(gives, mark, state[PARTNER_MARK]),
        PARTNER_EPOCH: torch.where(gives & anew, epoch + 1, epoch),
        PAIRED: torch.where(met, epoch, torch.full_like(epoch, UNPAIRED)),
    }


def partner_after(role: Tensor, y: Tensor, partner: Tensor) -> Tensor:
    """What the partner's result becomes."""
    return torch.where(role == GIVES, y.type_as(partner), partner)


def either(forced: Tensor, apart: Tensor) -> Tensor:
    return forced | apart
