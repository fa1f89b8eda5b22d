"""Denoising runs: what a pipeline or a user announces, which one a call is of, and where in it the call stands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_numbers = itertools.count(1)


@dataclass(eq=False)
class Run:
    """One denoising run that somebody announced. Calls made while it lasts, in its thread or task, are of it."""

    steps: int | None  # None: nobody said
    request: str  # the name of the request that it serves; "" for none
    fields: Mapping[str, Any]  # of the config, that it overrides
    by: object = None  # what announced it, a pipeline; None: the user
    outer: Run | None = None  # the one in which it began
    place: Callable[[], int | None] | None = None  # tells the index of the next step; None, from it too: it is counted
    ended: bool = False
    # Steps that each stream of each model has done, so that another one that takes over half way knows where it stands.
    done: dict[tuple[int, str], int] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))
    at_end: list[Callable[[], None]] = field(default_factory=list)

    def end(self) -> None:
        """Calls from now on are of the run around it. Does nothing the second time."""
        self.ended = True
        while self.at_end:
            self.at_end.pop()()
        if _current.get() is self:
            _current.set(self.outer)

    def index(self, model: int, name: str) -> int:
        """How many steps of the run are done, as far as can be told, where stream `name` of `model` makes its next."""
        told = self.place() if self.place is not None else None
        if told is not None:
            return told
        own = self.done.get((model, name))
        if own is not None:
            return own
        others = [done for (other, _), done in self.done.items() if other == model]
        if others:  # a second call of guidance that is switched on half way: the first one of this step is done
            return max(others) - 1
        before = [done for (_, other), done in self.done.items() if other == name]
        # Another model takes over half way, as Wan 2.2's second expert does, unless both are called on every step.
        return max(before) if before and max(before) > 1 else 0


_current: ContextVar[Run | None] = ContextVar("dicache_run", default=None)


def current_run() -> Run | None:
    """The run that a call made here is of; None where nobody announced one."""
    run = _current.get()
    while run is not None and run.ended:
        run = run.outer
    return run


def begin_run(
    steps: int | None,
    request: str,
    fields: Mapping[str, Any] | None = None,
    by: object = None,
    place: Callable[[], int | None] | None = None,
) -> Run:
    """Announces a run of that many steps, inside the one that lasts here; `Run.end` ends it."""
    outer = current_run()
    inherited = outer.fields if outer is not None else {}
    run = Run(steps, request, {**inherited, **(fields or {})}, by, outer, place)
    _current.set(run)
    return run


def end_runs_of(by: object) -> None:
    """Ends the innermost runs that last here, as long as they are of that pipeline."""
    while (run := current_run()) is not None and run.by is by:
        run.end()


def resume(run: Run | None) -> bool:
    """Makes a run that lasts the one of calls made here, as in another thread, if there is none; whether it did."""
    if run is None or run.ended or current_run() is not None:
        return False
    _current.set(run)
    return True


def suspend() -> None:
    """Takes back what `resume` did."""
    _current.set(None)


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its run a call stands, as the caller says."""

    index: int | None = None  # of the step, from 0
    steps: int | None = None  # of the run
    sigma: float | None = None  # the noise level

    @property
    def place(self) -> float | None:
        """A number that moves in one direction from step to step."""
        return self.sigma if self.index is None else self.index


NOWHERE = Position()
_position: ContextVar[Position] = ContextVar("dicache_position", default=NOWHERE)


def current_position() -> Position:
    return _position.get()


@contextmanager
def at(position: Position) -> Iterator[None]:
    """Calls made inside stand at this position."""
    outer = _position.get()
    _position.set(position)
    try:
        yield
    finally:
        _position.set(outer)
