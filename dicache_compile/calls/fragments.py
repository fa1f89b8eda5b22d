"""Graphs that end at a graph break: what is best for one shows only when the rest of the call has run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..graph.fragment import Function

_clock = itertools.count(1)
_ran: dict[tuple[Function | None, int], int] = {}  # function and work of its trunk -> when such a graph last ran


def note_run(function: Function | None, work: int) -> None:
    """A graph of that function runs, which is cut or may come to be and has that much work in its trunk."""
    _ran[function, work] = next(_clock)


@dataclass(slots=True)
class Fragment:
    """Runs uncached once; then cached if it holds the call's heaviest trunk, and of equal ones the last.

    A refiner's graph does not. Graphs of one function, as for another shape, are not compared.
    """

    plain: Callable[..., Any]
    cached: Callable[..., Any] | None  # None: the graph cannot be cut
    function: Function | None
    work: int  # of its trunk
    refused: Callable[..., Any]  # `plain` with a word about it, if no graph of the call is cached
    began: int | None = None
    chosen: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.chosen is None:
            if self.began is None:
                self.began = next(_clock)
                if self.cached is not None:
                    note_run(self.function, self.work)
                return self.plain(*inputs)
            later = [work for (own, work), time in _ran.items() if time > self.began and own != self.function]
            if self.cached is None:
                self.chosen = self.plain if later else self.refused
            else:
                self.chosen = self.plain if max(later, default=-1) >= self.work else self.cached
        return self.chosen(*inputs)
