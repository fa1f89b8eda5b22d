"""Where a call's timestep comes from: an input of the graph, an earlier graph of the same call, or a count of steps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..errors import StepError
from ..graph.fragment import Function
from ..write.control import CLOCK
from .state import StreamState


class Clock(Protocol):
    """Tells the timestep of a call, and writes it into the state where the graph does not read it itself."""

    def time(self, inputs: Sequence[Any]) -> Tensor | None:
        """The timestep of this call, of any shape; None where steps are only counted."""
        ...

    def write(self, state: StreamState, time: Tensor | None) -> None:
        """Sets the slot "clock" for the next step of this state."""
        ...

    @property
    def counts(self) -> bool:
        """Whether there is no timestep at all: generations have a known number of steps."""
        ...


@dataclass(frozen=True, slots=True)
class InputClock:
    """The graph has the timestep among its inputs, and reads it there."""

    place: int
    counts: bool = False

    def time(self, inputs: Sequence[Any]) -> Tensor:
        found: Tensor = inputs[self.place]
        return found

    def write(self, state: StreamState, time: Tensor | None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class CountingClock:
    """No timestep at all: a generation has a known number of steps, and the next call starts another one."""

    counts: bool = True

    def time(self, inputs: Sequence[Any]) -> None:
        return None

    def write(self, state: StreamState, time: Tensor | None) -> None:
        state.order()
        state.tensors[CLOCK].fill_(-state.calls)


@dataclass(slots=True)
class EarlierClock:
    """The graph begins after a graph break, and an earlier graph of the same function had the timestep."""

    function: Function
    used: int = field(default=-1)  # the number of the last sighting that was used
    counts: bool = False

    def time(self, inputs: Sequence[Any]) -> Tensor:
        number, time = _seen().get(self.function, (-1, None))
        if time is None or number == self.used:
            raise StepError(
                f"the timestep of this call is not known: the graph before the break in {self.function[1]} did not "
                "run. Compile the model again after torch._dynamo.reset()"
            )
        self.used = number
        return time

    def write(self, state: StreamState, time: Tensor | None) -> None:
        assert time is not None
        state.order()
        # Of a vector the mean, which moves where anything does; exactly the value of equal elements.
        state.tensors[CLOCK].copy_(time.double().mean())


_numbers = itertools.count()
_local = threading.local()


def _seen() -> dict[Function, tuple[int, Tensor]]:
    if not hasattr(_local, "seen"):
        _local.seen = {}
    found: dict[Function, tuple[int, Tensor]] = _local.seen
    return found


def has_seen(function: Function) -> bool:
    """Whether an earlier graph of this function has told a timestep in this thread."""
    return function in _seen()


def telling(run: Callable[..., Any], function: Function, place: int) -> Callable[..., Any]:
    """A graph that tells the later graphs of its function which timestep it got."""

    def step(*inputs: Any) -> Any:
        _seen()[function] = next(_numbers), inputs[place].detach()
        return run(*inputs)

    return step
