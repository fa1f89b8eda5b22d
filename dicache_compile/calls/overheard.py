"""Which graphs a call of a model runs, for whom it wants to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Graph:
    """One that ran."""

    step: Any  # the `CompiledStep`; None: it was not cut
    inputs: Sequence[Any]
    outputs: Sequence[Any]


_listening: ContextVar[list[Graph] | None] = ContextVar("dicache_listening", default=None)


@contextmanager
def overheard() -> Iterator[list[Graph]]:
    """The graphs that run inside, in their order."""
    heard: list[Graph] = []
    outer = _listening.set(heard)
    try:
        yield heard
    finally:
        _listening.reset(outer)


def note_graph(step: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """A graph has run."""
    heard = _listening.get()
    if heard is not None:
        heard.append(Graph(step, inputs, outputs))
