"""A run lasts as long as its progress bar is open."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..calls.runs import Run, begin_run
from ..calls.streams import current_request


def announce(bar: Any, steps: int | None, by: object, place: Callable[[], int | None] | None = None) -> Run:
    """Begins a run that ends when a progress bar is closed, or is gone, as it also is after an exception."""
    run = begin_run(steps, current_request(), by=by, place=place)
    weakref.finalize(bar, run.end).atexit = False
    with suppress(AttributeError):  # a bar of another kind, that takes no attributes
        bar.close = functools.partial(_close, weakref.ref(bar), run)
    return run


def _close(bar: weakref.ref[Any], run: Run) -> None:
    run.end()
    # By way of a weak reference, as a bar that held itself would be freed, and its run ended, at some later time.
    alive = bar()
    if alive is not None:
        type(alive).close(alive)
