"""Forgetting."""

from __future__ import annotations

from .subject import subjects


def reset(model: object, request: str | None = None) -> None:
    """Drops the state of all streams of a compiled model (or its original), with the CUDA graphs captured for it.

    With `request`, that of the request or stream of this name alone: of one that is cancelled. The place of a row that
    `stream([...])` has named is free then, and its captures stay. A name that nothing is known of is none to forget.

    The next call starts a generation. Call it between generations wherever the timestep does not tell them apart. The
    record of past steps stays. `model` may be a pipeline: then all of its compiled models forget.
    Raises TypeError if `model` is neither a module nor a pipeline with a compiled one, or `request` is no name.
    """
    if request is not None and not isinstance(request, str):
        raise TypeError(f"request: expected the name of one, got {request!r}")
    for one in subjects(model):
        for session in (*one.sessions, *one.others):
            with session.lock:
                session.reset() if request is None else session.end(request)
