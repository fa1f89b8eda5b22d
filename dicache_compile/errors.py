"""What can go wrong: a graph that cannot be cut, a step that cannot be captured, a call that cannot be answered."""

from __future__ import annotations


class UnsupportedGraphError(RuntimeError):
    """A graph that a pass refuses; its text is one sentence that says what was found and what was expected."""

    def __init__(self, pass_name: str, reason: str) -> None:
        super().__init__(f"{pass_name}: {reason}")
        self.pass_name = pass_name
        self.reason = reason


class StepError(RuntimeError):
    """A call of a compiled model that cannot be answered rightly, with what to do about it."""


class CaptureError(RuntimeError):
    """A step that cannot be captured; it runs on another engine, for this reason."""


class UncachedWarning(UserWarning):
    """A graph runs without the cache, as torch.compile would run it; the text says why."""


class CacheWarning(UserWarning):
    """A cache that is on and helps little, or not as its config says; the text has the numbers and what to do."""
