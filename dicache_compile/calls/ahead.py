"""What the host knows of a stream's next step before it runs: whether a schedule has it reused.

It does in a run that was announced, as long as nothing happens that only the device would see: a condition that is
another tensor, or that was written to.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..write.control import ANNOUNCED, DEEP_STEPS, LIMITS, RUN
from .layout import Key
from .state import StreamState

Mark = tuple["weakref.ref[Tensor]", int]  # a tensor, and how often it had been written to


@dataclass(slots=True)
class Ahead:
    """What the host has seen of one stream."""

    deep: frozenset[float] | None = None  # the steps that the running generation has deep; None: not known
    first: float = 0  # how many first ones are deep besides
    key: Key | None = None  # the graph of the last step
    conditions: tuple[Mark, ...] | None = None  # of the last step; None: they cannot be told

    def reuses(self, state: StreamState, conditions: Sequence[Tensor]) -> bool:
        """Whether the next step is reused: False where it runs deep, or only the device knows."""
        same = state.key == self.key and _are(conditions, self.conditions)
        if not same:
            self.key, self.conditions = state.key, _marks(conditions)
        if not state.calls:
            told = state.told
            self.deep, self.first = frozenset(told[DEEP_STEPS]), told[LIMITS][0]
            return False
        if not (same and state.anchored and state.told[RUN][0] == ANNOUNCED) or state.index is None:
            return False
        return self.deep is not None and state.index >= self.first and state.index not in self.deep


def _marks(conditions: Sequence[Tensor]) -> tuple[Mark, ...] | None:
    if any(one.is_inference() for one in conditions):  # of which nobody counts how often they are written to
        return None
    return tuple((weakref.ref(one), one._version) for one in conditions)


def _are(conditions: Sequence[Tensor], marks: tuple[Mark, ...] | None) -> bool:
    if marks is None:
        return False
    return all(ref() is one and version == one._version for one, (ref, version) in zip(conditions, marks, strict=True))
