"""Forgetting."""

from __future__ import annotations

from .subject import subjects


def reset(model: object) -> None:
    """Drops the state of all streams of a compiled model (or its original), with the CUDA graphs captured for it.

    The next call starts a generation. Call it between generations wherever the timestep does not tell them apart. The
    record of past steps stays. `model` may be a pipeline: then all of its compiled models forget.
    Raises TypeError if `model` is neither a module nor a pipeline with a compiled one.
    """
    for one in subjects(model):
        for session in (*one.sessions, *one.others):
            session.reset()
