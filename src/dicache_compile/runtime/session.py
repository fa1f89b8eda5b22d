"""One model at run time: its streams, shared by all graphs that Dynamo makes of it."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DiCacheConfig
from ..passes.control import JOINT, LEADER_TIME, LED, LOG_ROWS
from ..plan import Slot
from .adjustments import adjusted, adjusted_models, tell_of_configure
from .marks import Mark, mark_of, marks_of
from .settings import Told
from .state import KEPT, StreamState, allocate
from .streams import Numbering, request_of

MAX_STREAMS = 16  # with state at the same time; the longest unused gives way, and starts anew when it comes back
MAX_RESTING = 4  # states with captures that are kept for streams which now have another shape
MAX_HISTORIES = 64  # streams whose record is kept

_clock = itertools.count(1)  # numbers the calls of all models


@dataclass(slots=True)
class History:
    """What a stream's record needs: the log on the device, which calls its rows were, and what these were told."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # the `KEPT` slots
    calls: deque[tuple[int, DiCacheConfig]] = field(default_factory=lambda: deque(maxlen=LOG_ROWS))


class Session:
    """The streams of one model under one config. Not safe for calls from several threads at once."""

    def __init__(self, mark: Mark | None, config: DiCacheConfig) -> None:
        self.config = config  # that of the compiled graphs
        self.told = Told(config)  # what its next generations go by, which may differ at run time
        self.streams: OrderedDict[str, StreamState] = OrderedDict()
        self.history: OrderedDict[str, History] = OrderedDict()
        self.numbering = Numbering()
        self.pipeline_steps: int | None = None  # steps of the running pipeline's generation
        self.last_call = 0
        self.last_cut: Any = None  # what was cut, for `explain`,
        self.last_engine: Any = None  # and what it runs on
        # Captures take long to make: a stream that gets its earlier shape back gets these back, with their state.
        self._resting: OrderedDict[tuple[str, int, tuple[int, ...]], StreamState] = OrderedDict()
        self._mark = weakref.ref(mark) if mark is not None else None

    def is_of(self, marks: set[Mark]) -> bool:
        """Whether this session's model has one of the weights with these marks."""
        return self._mark is not None and self._mark() in marks

    def state(
        self,
        name: str,
        owner: int,
        key: tuple[int, ...],
        slots: Sequence[Slot],
        shapes: Callable[[], Mapping[str, tuple[int, ...]]],
    ) -> StreamState:
        """The state of a stream; a new one where the stream had none, or that of another graph or shape."""
        found = self.streams.get(name)
        if found is None or found.owner != owner or found.key != key:
            self._rest(name)
            found = self._rested(name, owner, key) or self._taken_over(name, owner, key)
            if found is None:
                found = StreamState(owner, key, allocate(slots, shapes(), self._kept(name, slots)))
            self.streams[name] = found
            self.history[name].tensors = {kept: found.tensors[kept] for kept in KEPT}
            while len(self.streams) > MAX_STREAMS:
                self.streams.popitem(last=False)
            while len(self.history) > MAX_HISTORIES:
                self.history.popitem(last=False)
        self.streams.move_to_end(name)
        self.history.move_to_end(name)
        return found

    def _rest(self, name: str) -> None:
        """Takes a stream's state away from it, and keeps it if there are captures for it."""
        state = self.streams.pop(name, None)
        if state is not None and state.recording is not None:
            self._resting[name, state.owner, state.key] = state
            while len(self._resting) > MAX_RESTING:
                self._resting.popitem(last=False)

    def _rested(self, name: str, owner: int, key: tuple[int, ...]) -> StreamState | None:
        """The state that a stream had for this graph and shape; its next step starts a generation."""
        state = self._resting.pop((name, owner, key), None)
        history = self.history.get(name)
        if state is None or history is None:
            return None
        expected = {**history.tensors, **self._of_request(name, state.tensors[KEPT[0]].device)}
        if any(state.tensors[slot] is not tensor for slot, tensor in expected.items()):
            return None
        state.restart()
        return state

    def _taken_over(self, name: str, owner: int, key: tuple[int, ...]) -> StreamState | None:
        """The state of the stream that gives way, if what was captured for it serves this one."""
        oldest = next(iter(self.streams.items())) if len(self.streams) >= MAX_STREAMS else None
        if oldest is None or oldest[1].recording is None or (oldest[1].owner, oldest[1].key) != (owner, key):
            return None
        old, state = oldest
        if LED in state.tensors and request_of(old) != request_of(name):
            return None
        del self.streams[old]
        # The captured step goes on writing to the same record: that of the old stream is copied from there.
        before = self.history.setdefault(name, History()).tensors
        state.order()
        with torch.inference_mode(False), torch.no_grad():
            self.history[old].tensors = {kept: state.tensors[kept].clone() for kept in KEPT}
            for kept in KEPT:
                state.tensors[kept].copy_(before[kept]) if before else state.tensors[kept].zero_()
            if LED in state.tensors:
                state.tensors[LED].zero_()
        state.restart()
        return state

    def _kept(self, name: str, slots: Sequence[Slot]) -> dict[str, Tensor]:
        """What a stream's next state takes over: the record of its earlier ones, and what its request shares."""
        device = next(slot.device for slot in slots if slot.name in KEPT)
        history = self.history.setdefault(name, History())
        if any(tensor.device != device for tensor in history.tensors.values()):
            history = self.history[name] = History()
        return {**history.tensors, **self._of_request(name, device)}

    def _of_request(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """The slots that the streams of a stream's request share, if it has one that keeps them on this device."""
        for other, state in self.streams.items():
            shared = {slot: state.tensors[slot] for slot in JOINT if slot in state.tensors}
            if shared and request_of(other) == request_of(name) and shared[LEADER_TIME].device == device:
                return shared
        return {}

    def tell(self, config: DiCacheConfig) -> None:
        """From the next generation of each stream on, this config counts; it differs in run-time fields only."""
        self.told = Told(config)

    def begin_call(self, name: str, config: DiCacheConfig) -> None:
        """A step of a stream begins; `config` is the one that it was told."""
        self.last_call = next(_clock)
        self.history[name].calls.append((self.last_call, config))

    def drop(self, name: str) -> None:
        """Forgets a stream's state: a step of it failed half-way."""
        state = self.streams.pop(name, None)
        if state is not None and LEADER_TIME in state.tensors:
            # What it decided is not what it did. The device itself may have failed.
            with suppress(Exception):
                state.order()
                state.tensors[LEADER_TIME].fill_(math.nan)
        self.numbering.reset()

    def restart(self) -> None:
        """The next call of every stream starts a generation."""
        for state in self.streams.values():
            state.restart()
        self.numbering.reset()

    def reset(self) -> None:
        """Forgets the state of every stream, and frees it and what was captured for it."""
        self.streams.clear()
        self._resting.clear()
        self.numbering.reset()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def release() -> None:
    """Frees the state of all models, and what was captured for it."""
    for session in list(_sessions):
        session.reset()


def session_for(mark: Mark | None, config: DiCacheConfig) -> Session:
    """The session of the model whose weight has this mark, under this config; a new one if there is none."""
    if mark is not None:
        for session in _sessions:
            if session.config == config and session.is_of({mark}):
                return session
    session = Session(mark, config)
    if mark is not None:
        for model in adjusted_models():
            if mark in _marks(model):
                session.tell(adjusted(model, config))
        tell_of_configure(mark, config, [other.config for other in _sessions if other.is_of({mark})])
    _sessions.add(session)
    session.pipeline_steps = next((steps for model, steps in _announced.items() if session.is_of(_marks(model))), None)
    return session


def sessions_of(model: nn.Module) -> list[Session]:
    """The sessions of a model, the compiled or the original one; the one that was called last comes last."""
    if not _sessions:
        return []
    marks = _marks(model)
    return sorted((session for session in _sessions if session.is_of(marks)), key=lambda session: session.last_call)


def _marks(model: nn.Module) -> set[Mark]:
    return marks_of((*model.parameters(), *model.buffers()))


class SessionFinder:
    """Finds the session of a call by a weight among its inputs.

    Dynamo takes weights as inputs and runs one compiled graph for every model of the same form, so a graph does not
    know its model before it is called. A session lives as long as its weight.
    """

    def __init__(self, config: DiCacheConfig, cut: object, engine: object) -> None:
        self._config, self._cut, self._engine = config, cut, engine
        self._found: weakref.WeakKeyDictionary[Mark, Session] = weakref.WeakKeyDictionary()
        self._nameless: Session | None = None  # where the graph has no weight

    def __call__(self, weight: Tensor | None) -> Session:
        if weight is None:
            self._nameless = self._nameless or self._session(None)
            return self._nameless
        mark = mark_of(weight)
        session = self._found.get(mark)
        if session is None:
            session = self._found[mark] = self._session(mark)
        return session

    def _session(self, mark: Mark | None) -> Session:
        session = session_for(mark, self._config)
        session.last_cut, session.last_engine = self._cut, self._engine
        return session


# Models whose pipeline has begun a generation, by weak reference, for sessions that begin in the middle of it.
_announced: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()


def announce_generation(model: nn.Module, steps: int | None) -> None:
    """A pipeline begins a generation of that many steps (None: unknown) with this model."""
    _announced[model] = steps
    for session in sessions_of(model):
        session.pipeline_steps = steps
        session.restart()


def end_generation(model: nn.Module) -> None:
    """A pipeline has ended its generation with this model."""
    _announced.pop(model, None)
    for session in sessions_of(model):
        session.pipeline_steps = None
        session.restart()
