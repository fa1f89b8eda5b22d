"""Which stream a call belongs to: a name that somebody gave, or a number among the calls of one timestep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

SINGLE = "main"  # the stream of unnamed calls where all are of one

_explicit: ContextVar[str | None] = ContextVar("dicache_stream", default=None)
_pipeline: ContextVar[str | None] = ContextVar("dicache_pipeline_stream", default=None)


@contextmanager
def stream(name: str) -> Iterator[None]:
    """Names the stream of the calls made inside it.

    Used as `with stream("cond"): model(...)`. A stream is one independent sequence of calls with its own state, such
    as the conditional calls of one request. Raises TypeError or ValueError for a name that is no text or empty.
    """
    with _named(_explicit, name):
        yield


@contextmanager
def pipeline_stream(name: str) -> Iterator[None]:
    """The same for a name that a pipeline gives; inside an explicit one it is "request/cond"."""
    with _named(_pipeline, name):
        yield


def current_name() -> str | None:
    """The name in force here, if there is one."""
    return "/".join(filter(None, (_explicit.get(), _pipeline.get()))) or None


def request_of(name: str) -> str:
    """The request that a stream is of: "a" of "a/cond"; "" of a name without one."""
    return name.rpartition("/")[0]


@contextmanager
def _named(variable: ContextVar[str | None], name: str) -> Iterator[None]:
    if not isinstance(name, str):
        raise TypeError(f"stream: expected a name, got {name!r}")
    if not name:
        raise ValueError("stream: expected a name, got an empty one")
    token = variable.set(name)
    try:
        yield
    finally:
        variable.reset(token)


@dataclass(slots=True)
class Numbering:
    """Numbers the unnamed calls that share a timestep: "0", "1", ..."""

    time: float | None = None
    calls: list[tuple[Tensor, ...]] = field(default_factory=list)  # the prompts of this timestep's calls so far
    # Timesteps for which stream "0" may still hold another request's anchors: what looked like a generation given up
    # may have been a second request with the same prompt. Its steps run deep until both anchors are its own.
    doubt: int = 0

    def next(self, time: float, prompts: tuple[Tensor, ...], at_start: Callable[[], bool]) -> str:
        """The stream of a call at this timestep with these prompts.

        `at_start()`: whether the streams have done no other timestep yet. Then the same prompts again are not another
        stream but another generation, the one before having been given up after its first step.
        """
        if self.time != time:
            self.time, self.calls = time, []
            self.doubt = max(0, self.doubt - 1)
        elif prompts and any(_equal(prompts, earlier) for earlier in self.calls) and at_start():
            self.calls, self.doubt = [], 3
        self.calls.append(prompts)
        return str(len(self.calls) - 1)

    def reset(self) -> None:
        self.time, self.calls, self.doubt = None, [], 0


def _equal(prompts: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    pairs = list(zip(prompts, others, strict=False))
    return len(prompts) == len(others) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
