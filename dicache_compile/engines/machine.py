"""Which engines a machine can have, known before there is a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cuda.captures import why_unfit_allocator
from .cuda.driver import why_no_conditional


@dataclass(frozen=True, slots=True)
class Possible:
    """An engine, and whether steps can run on it here."""

    name: str  # as in the config
    reason: str | None  # why it cannot be had; None where it can


def possible_engines() -> tuple[Possible, ...]:
    """All engines, that of the fewest launches first. A model may be of a form that some of them cannot run."""
    captures = why_no_captures()
    conditional = captures or _reason(_why_no_conditional)
    return (
        Possible("conditional", conditional),
        Possible("graphs", captures),
        Possible("calls", None),
        Possible("cond", None),
    )


def why_no_captures() -> str | None:
    """The reason why no step can be captured in a CUDA graph here, or None."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA"
        return "torch sees no CUDA device"
    return why_unfit_allocator()


def _why_no_conditional() -> str | None:
    torch.zeros((), device="cuda")  # makes the context that is needed to ask
    return why_no_conditional()


def _reason(ask: Callable[[], str | None]) -> str | None:
    try:
        return ask()
    except Exception as error:  # whatever the driver or its bindings say: it is the reason
        return f"{type(error).__name__}: {error}"
