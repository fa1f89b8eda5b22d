"""Graphs that end at a graph break: what is best for one shows only when the rest of the call has run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_clock = itertools.count(1)
_ran: dict[int, int] = {}  # weight of a trunk -> when a cut graph with such a trunk last ran


def note_run(weight: int) -> None:
    """A graph runs that has a trunk of that many nodes, and is cut or may come to be."""
    _ran[weight] = next(_clock)


@dataclass(slots=True)
class Fragment:
    """Runs uncached once; then cached if it holds the heaviest trunk of the call, as a refiner's graph does not."""

    plain: Callable[..., Any]
    cached: Callable[..., Any] | None  # None: the graph cannot be cut
    weight: int  # of its trunk
    complain: Callable[[], None]  # called once if no graph of the call is cached
    began: int | None = None
    chosen: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.chosen is None:
            if self.began is None:
                self.began = next(_clock)
                if self.cached is not None:
                    note_run(self.weight)
                return self.plain(*inputs)
            heaviest = max((weight for weight, time in _ran.items() if time > self.began), default=0)
            if self.cached is None and not heaviest:
                self.complain()
            self.chosen = self.plain if self.cached is None or heaviest > self.weight else self.cached
        return self.chosen(*inputs)
