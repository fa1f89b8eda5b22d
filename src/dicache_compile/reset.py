"""Forgetting."""

from __future__ import annotations

from torch import nn

from .runtime.session import sessions_of


def reset(model: nn.Module) -> None:
    """Drops the state of all streams of a compiled model (or its original), with the CUDA graphs captured for it.

    The next call starts a generation. Call it between generations wherever the timestep does not tell them apart. The
    record of past steps stays.
    Raises TypeError if `model` is no module.
    """
    for session in sessions_of(model):
        session.reset()
