"""One model at run time: its streams, shared by all graphs that Dynamo makes of it."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..passes.control import LOG_ROWS
from ..plan import Slot
from .state import KEPT, StreamState, allocate
from .streams import Numbering

MAX_STREAMS = 16  # with state at the same time; the longest unused gives way, and starts anew when it comes back
MAX_HISTORY = LOG_ROWS  # calls that a stream's record goes back

_clock = itertools.count(1)  # numbers the calls of all models


@dataclass(slots=True)
class History:
    """What a stream's record needs: the log on the device, and which calls of the model its rows were."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # the `KEPT` slots
    calls: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))


class Session:
    """The streams of one model under one config. Not safe for calls from several threads at once."""

    def __init__(self, settings: object) -> None:
        self.settings = settings  # the config: one model compiled under two has two sessions
        self.streams: OrderedDict[str, StreamState] = OrderedDict()
        self.history: dict[str, History] = {}
        self.numbering = Numbering()
        self.pipeline_steps: int | None = None  # steps of the running pipeline's generation
        self.last_call = 0
        self.graphs: list[Any] = []  # what was cut, for `explain`
        self._anchor: weakref.ref[Tensor] | None = None

    def is_of(self, parameters: set[int]) -> bool:
        """Whether the model of this session has one of these parameters (ids)."""
        anchor = self._anchor() if self._anchor is not None else None
        return anchor is not None and id(anchor) in parameters

    def watch(self, weight: Tensor) -> None:
        """Remembers by which weight the model is known; it may be another object after weights were replaced."""
        if self._anchor is None or self._anchor() is not weight:
            self._anchor = weakref.ref(weight)

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
            self.streams.pop(name, None)
            history = self.history.setdefault(name, History())
            device = next(slot.device for slot in slots if slot.name in KEPT)
            kept = {n: t for n, t in history.tensors.items() if t.device == device}
            found = StreamState(owner, key, allocate(slots, shapes(), kept))
            if not kept:
                history.tensors, history.calls = {n: found.tensors[n] for n in KEPT}, deque(maxlen=MAX_HISTORY)
            self.streams[name] = found
            while len(self.streams) > MAX_STREAMS:
                self.streams.popitem(last=False)
            while len(self.history) > 4 * MAX_STREAMS:
                self.history.pop(next(n for n in self.history if n not in self.streams))
        self.streams.move_to_end(name)
        return found

    def begin_call(self, name: str) -> None:
        self.last_call = next(_clock)
        self.history[name].calls.append(self.last_call)

    def drop(self, name: str) -> None:
        """Forgets a stream's state: a step of it failed half-way."""
        self.streams.pop(name, None)
        self.numbering.reset()

    def restart(self) -> None:
        """The next call of every stream starts a generation."""
        for state in self.streams.values():
            state.restart()
        self.numbering.reset()

    def reset(self) -> None:
        """Forgets the state of every stream, and frees it."""
        self.streams.clear()
        self.numbering.reset()
        self.pipeline_steps = None


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def session_for(weights: Iterable[Tensor], settings: object) -> Session:
    """The session of the model with these weights under this config; a new one if there is none."""
    weights = list(weights)
    ids = {id(weight) for weight in weights}
    for session in _sessions:
        if session.settings == settings and session.is_of(ids):
            return session
    session = Session(settings)
    if weights:
        session.watch(weights[0])
    _sessions.add(session)
    session.pipeline_steps = announced_steps(session)
    return session


def sessions_of(model: nn.Module) -> list[Session]:
    """The sessions of a model, the compiled or the original one; the one that was called last comes last."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, compiled or not, got {type(model).__name__}")
    ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return sorted((s for s in _sessions if s.is_of(ids)), key=lambda session: session.last_call)


# Models whose pipeline has begun a generation, by weak reference, for sessions that begin in the middle of it.
_announced: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()


def announce_generation(model: nn.Module, steps: int | None) -> None:
    """A pipeline begins a generation of that many steps (None: unknown) with this model."""
    _announced[model] = steps
    for session in sessions_of(model):
        session.pipeline_steps = steps
        session.restart()


def announced_steps(session: Session) -> int | None:
    """The steps of the generation in which this session begins, if a pipeline announced one."""
    return next((steps for model, steps in _announced.items() if session in sessions_of(model)), None)


def end_generation(model: nn.Module) -> None:
    """A pipeline has ended its generation with this model."""
    _announced.pop(model, None)
    for session in sessions_of(model):
        session.pipeline_steps = None
        session.restart()
