"""Graphs that run uncached: which models they were of, and why; each model is told once."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import DiCacheConfig
from ..errors import UncachedWarning, UnsupportedGraphError
from .marks import Mark, mark_of, marks_of
from .overheard import note_graph

_INSIDE = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a graph is not cached."""

    config: DiCacheConfig
    reason: str
    heavy: int  # heavy operations of the graph: of several the heaviest is the one that was worth cutting


# The refused graphs of a model, in the order in which it first met them.
_refusals: weakref.WeakKeyDictionary[Mark, list[Refusal]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakKeyDictionary[Mark, set[str]] = weakref.WeakKeyDictionary()


def refusals_of(model: nn.Module) -> list[Refusal]:
    """What was refused of a model."""
    marks = marks_of((*model.parameters(), *model.buffers()))
    return [refusal for mark in marks for refusal in _refusals.get(mark, ())]


@dataclass(frozen=True, slots=True)
class Uncached:
    """A graph as plain torch.compile runs it. Dynamo runs it for every model of one form, so calls tell whose it is."""

    plain: Callable[..., Any]
    weight: int | None  # which input is a weight, by which a call's model is known
    refusal: Refusal
    error: UnsupportedGraphError
    loud: bool  # whether to warn, or to raise if the config is strict; else it is only remembered
    warned: set[str] | None = (
        None  # what was warned of all that it runs for, as for blocks of one model; None: by model
    )

    def __call__(self, *inputs: Any) -> Any:
        self._tell(inputs)
        note_graph(None, inputs, ())
        return self.plain(*inputs)

    def _tell(self, inputs: Sequence[Any]) -> None:
        mark = mark_of(inputs[self.weight]) if self.weight is not None else None
        known = _refusals.setdefault(mark, []) if mark is not None else []
        if self.refusal not in known:
            known.append(self.refusal)
        if not self.loud:
            return
        if self.refusal.config.strict:
            raise self.error
        warned = self.warned
        if warned is None:
            warned = _warned.setdefault(mark, set()) if mark is not None else _of_no_model
        if self.refusal.reason not in warned:
            warned.add(self.refusal.reason)
            _warn(f"this graph runs uncached: {self.refusal.reason}")


_of_no_model: set[str] = set()  # reasons that were told of graphs without a weight


def _warn(text: str) -> None:
    """Warns at the user's code that ran the graph; also where another model was told the same there."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "unknown")
    warnings.warn_explicit(text, UncachedWarning, frame.f_code.co_filename, frame.f_lineno, module, registry={})
