"""The states of a model's streams: how many there are, which give way, and what others take over."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import StepError
from ..program import of_rules
from ..write.control import LED
from .desk import Desks
from .layout import Key, Layout
from .pool import Pool
from .pools import Pools
from .record import History
from .shared import Shared
from .state import KEPT, StreamState, needed
from .streams import request_of

MAX_RESTING = 4  # states with captures that are kept for streams which now have another shape
MAX_HISTORIES = 64  # streams whose record is kept, unless more have state


@dataclass(frozen=True, slots=True)
class Lost:
    """Where a stream stood that gave way to another one."""

    run: int | None  # which it was of
    time: Tensor
    direction: Tensor
    bound: str  # that it gave way to: "max_streams=16"


class Store:
    """The states of one model's streams. Not safe for calls from several threads at once."""

    def __init__(self, limit: int, budget: int | None = None, on_device: int | None = None) -> None:
        """`limit`: how many have state at the same time; the longest unused gives way, and starts anew when it comes
        back. `budget`: how many bytes that may take on the device, of which it is the same. `on_device`: of how many
        it lies there, while that of the others lies in host memory.
        """
        self.limit = limit
        self.desks = Desks(on_device) if on_device is not None else None
        self._budget = budget
        self.pools = Pools(limit)  # of requests that are rows of batches
        self.streams: OrderedDict[str, StreamState] = OrderedDict()
        self.history: OrderedDict[str, History] = OrderedDict()
        self.lost: OrderedDict[str, Lost] = OrderedDict()
        self._requests: weakref.WeakValueDictionary[str, Shared] = weakref.WeakValueDictionary()
        # Captures take long to make: a stream that gets its earlier shape back gets these back, with their state.
        self._resting: OrderedDict[tuple[str, Key], None] = OrderedDict()

    def state(self, name: str, layout: Layout) -> tuple[StreamState, bool]:
        """(the state of a stream, for this graph and shape; whether the anchors that it has serve them).

        They do not where tensors that the caller passes have come or gone, as the residuals of a ControlNet do.
        """
        if self._budget is not None:
            self._afford(self._budget, partial(self._missing, name, layout), needed(layout), name)
        found, serves = self.streams.get(name), True
        if found is not None and found.key != layout.key:
            serves = found.arguments == layout.arguments
            if found.tensors[KEPT[0]].device != layout.slots[0].device:
                found = None
            elif not found.use(layout):
                serves = False
                self._rest(name, found)
        if found is None:
            found = self._taken_over(name, layout) or self._new(name, layout)
            self.streams[name] = found
            self.history[name].tensors = {kept: found.tensors[kept] for kept in KEPT}
            while len(self.streams) > self.limit:
                self._give_way()
            while len(self.history) > max(MAX_HISTORIES, self.limit):
                self.history.popitem(last=False)
        self.streams.move_to_end(name)
        self.history.move_to_end(name)
        return found, serves

    def afford_rows(self, pool: Pool, lane: str, layout: Layout) -> None:
        """Makes room for what requests of a pool do not have yet. Raises StepError where there is none."""
        if self._budget is not None:
            missing = partial(pool.missing, lane, layout)
            self._afford(self._budget, missing, missing(), None, pool)

    def _missing(self, name: str, layout: Layout) -> int:
        """How many bytes more a stream takes with this graph and shape."""
        found = self.streams.get(name)
        if found is not None:
            return found.missing(layout)
        return needed(layout, self.desks.assign() if self.desks is not None else None)

    def _afford(
        self, budget: int, missing: Callable[[], int], whole: int, name: str | None, pool: Pool | None = None
    ) -> None:
        """Makes room for so many bytes more, `whole` of them if nothing is kept of what there is under that name.

        Pools that are unused give way, but `pool`; then the streams that were unused for longest, the one of that name
        last. Raises StepError where that is not enough; then all streams are as they were.
        """
        while (more := missing()) and self._bytes() + more > budget:
            if self.pools.give_way(pool):
                continue
            oldest = next((other for other in self.streams if other != name), name)
            if oldest is None or oldest not in self.streams or whole + self.pools.bytes() > budget:
                raise StepError(_too_much(budget, whole, self.pools.bytes(), name))
            self._note_lost(oldest, self.streams.pop(oldest), f"max_state_bytes={budget}")

    def _bytes(self) -> int:
        """What all of it takes on the device."""
        on_desks = self.desks.bytes() if self.desks is not None else 0
        return sum(state.bytes() for state in self.streams.values()) + self.pools.bytes() + on_desks

    def on_device(self, state: StreamState) -> AbstractContextManager[None]:
        """Inside, a step may run for that state."""
        return self.desks.step(state) if self.desks is not None else nullcontext()

    def _rest(self, name: str, state: StreamState) -> None:
        """Bounds what is kept of shapes that streams have no more."""
        self._resting.pop((name, state.key), None)
        for key in state.resting():
            self._resting.setdefault((name, key))
        while len(self._resting) > MAX_RESTING:
            (other, key), _ = self._resting.popitem(last=False)
            if other in self.streams:
                self.streams[other].forget(key)

    def _give_way(self) -> None:
        name, state = self.streams.popitem(last=False)
        self._note_lost(name, state, f"max_streams={self.limit}")

    def _note_lost(self, name: str, state: StreamState, bound: str) -> None:
        state.order()
        time, direction = state.tensors["time"].clone(), state.tensors["direction"].clone()
        self.lost[name] = Lost(state.run, time, direction, bound)
        while len(self.lost) > MAX_HISTORIES:
            self.lost.popitem(last=False)

    def _taken_over(self, name: str, layout: Layout) -> StreamState | None:
        """The state of the stream that gives way, if what was captured for it serves this one."""
        oldest = next(iter(self.streams.items())) if len(self.streams) >= self.limit else None
        if oldest is None or not oldest[1].has_captures(layout.key):
            return None
        old, state = oldest
        if request_of(old) != request_of(name) and any(slot.of_request for slot in layout.slots):
            return None
        del self.streams[old]
        self._note_lost(old, state, f"max_streams={self.limit}")
        # The captured step goes on writing to the same record: that of the old stream is copied from there.
        before = self.history.setdefault(name, History()).tensors
        state.use(layout)
        state.order()
        with torch.inference_mode(False), torch.no_grad():
            self.history[old].tensors = {kept: state.tensors[kept].clone() for kept in KEPT}
            for kept in KEPT:
                state.tensors[kept].copy_(before[kept]) if before else state.tensors[kept].zero_()
            for led in of_rules(LED, state.tensors):
                state.tensors[led].zero_()
        state.restart()
        state.run = None
        return state

    def _new(self, name: str, layout: Layout) -> StreamState:
        """A state that takes over the record of the stream's earlier ones, and has what its request has."""
        history = self.history_of(name, layout)
        shared = self._requests.setdefault(request_of(name), Shared())
        return StreamState(layout, history.tensors, shared, self.desks.assign() if self.desks is not None else None)

    def history_of(self, name: str, layout: Layout) -> History:
        """What is recorded under a name; a new record on another device."""
        device = next(slot.device for slot in layout.slots if slot.name in KEPT)
        history = self.history.setdefault(name, History())
        self.history.move_to_end(name)
        if any(tensor.device != device for tensor in history.tensors.values()):
            history = self.history[name] = History()
        return history

    def drop(self, name: str) -> None:
        """Forgets a stream's state: a step of it failed half-way."""
        state = self.streams.pop(name, None)
        if state is not None:
            with suppress(Exception):  # the device itself may have failed
                state.doubt_shared()

    def clear(self) -> None:
        """Forgets the state of every stream, and frees it and what was captured for it."""
        self.streams.clear()
        self.lost.clear()
        self._resting.clear()


def _too_much(budget: int, needed: int, kept: int, name: str | None) -> str:
    what = f"stream {name!r}" if name is not None else "the pool of requests, with max_streams places,"
    beside = f" beside {_mib(kept)} of other requests" if kept else ""
    fewer = "" if name is not None else ", fewer max_streams"
    return (
        f"{what} has to keep {_mib(needed)}{beside}, and max_state_bytes allows {_mib(budget)}: raise it, or keep "
        f"less, by a smaller picture{fewer}, by state_dtype=torch.bfloat16 or torch.float8_e4m3fn, or by an estimator "
        "with fewer anchors"
    )


def _mib(number: int) -> str:
    return f"{number / 2**20:.2f} MiB"
