"""Writes what a reused step runs of a site on some of its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..rules import Seen, TokenEstimator
from .emit import Emitter
from .parts import Parts, tensor
from .slots import Updates, check_names


def renewed(parts: Parts, emitter: Emitter, place: int) -> tuple[Seen, Updates]:
    """(a carried value as its estimator then sees it, what the slots become) after some of its tokens were computed;
    nothing is where the estimator computes none.
    """
    carried, estimator = parts.carried[place], parts.estimator(place)
    by_token = carried.by_token
    if by_token is None or not isinstance(estimator, TokenEstimator):
        return parts.later(emitter, place), {}
    emitter.copy(node for node in by_token.before if not emitter.has(node))
    seen = parts.later(emitter, place)
    places = emitter.trace(estimator.pick, seen)
    rank, taken = tensor(carried.y).dim(), emitter.join(places)
    own = {node: emitter.trace(_taken, emitter.read(node), rank - tensor(node).dim(), taken) for node in by_token.taken}
    emitter.copy(by_token.after, own)
    given: Any = emitter.split(own[carried.y])
    new = emitter.trace(estimator.renew, replace(seen, places=places, y=given))
    check_names(estimator.renew, new, [spec.name for spec in estimator.slots()], all_of_them=True)
    return replace(seen, state={**seen.state, **new}), new


# Traced into the graph:


def _taken(value: Tensor, missing: int, places: Tensor) -> Tensor:
    """The tokens of [..., T, C] at places, [..., k], which have as many dimensions more as are missing."""
    for _ in range(missing):
        value = value.unsqueeze(0)
    return torch.take_along_dim(value, places.unsqueeze(-1), dim=-2)
