"""Where a stream's next step stands: which run it is of, whether a generation starts, which step it is."""

from __future__ import annotations

import math

from ..errors import StepError
from ..write.control import ANNOUNCED, UNANNOUNCED
from .runs import Position, Run
from .state import StreamState


def follow(state: StreamState, run: Run, index: int, serves: bool) -> None:
    """Prepares a step of an announced run, which has done `index` steps; `serves`: whether anchors still do."""
    if state.run != run.number:
        state.restart()
        state.run, state.index = run.number, index
        state.set_run(ANNOUNCED, index)
        return
    if not serves:
        state.renew()
        state.set_run(ANNOUNCED, index)
    state.move_to(index)


def follow_position(state: StreamState, position: Position, serves: bool) -> None:
    """Prepares a step of a run that nobody announced, of which the caller says where it stands."""
    if state.run is not None or state.place is None or _goes_back(state, position):
        state.restart()
        state.run, state.index = None, position.index
        state.set_run(ANNOUNCED, position.index or 0)
    elif not serves:
        state.renew()
        state.set_run(ANNOUNCED, position.index or 0)
    if position.index is not None:
        state.move_to(position.index)
    state.place = position.place


def _goes_back(state: StreamState, position: Position) -> bool:
    """Whether the caller is at the start again, or moves against the direction that it had."""
    assert state.place is not None
    assert position.place is not None
    moved = position.place - state.place
    way = 1.0 if position.index is not None else state.way
    if moved and not state.way:
        state.way = math.copysign(1, moved)
    return moved * way < 0 or (moved == 0 and state.calls == 1)


def follow_times(state: StreamState, steps: int | None, serves: bool) -> None:
    """Prepares a step of a run that nobody announced; the timestep tells where generations start.

    `steps`: of each, where the config says so.
    """
    if state.run is not None or state.place is not None or not (serves or steps):
        state.restart()
        state.run = None
    elif not serves:
        state.renew()
    state.index = None
    state.set_run(steps or UNANNOUNCED, 0)


def follow_count(state: StreamState, steps: int | None, serves: bool) -> None:
    """The same without a timestep: generations are of that many steps, one after the other."""
    if steps is None:
        raise StepError("a model without a timestep counts its steps: set num_steps, or announce runs by generation()")
    if state.run is not None or state.place is not None or state.calls >= steps:
        state.restart()
        state.run = None
    elif not serves:
        state.renew()
    state.index = state.calls  # as the device counts
    state.set_run(ANNOUNCED, 0 if serves else state.calls)
