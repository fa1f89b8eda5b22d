"""Which engine a graph gets."""

from __future__ import annotations

import logging
from functools import partial

from ..config import DiCacheConfig
from ..cut import Cut
from ..graph import values
from ..graph.input_names import input_name
from ..lowering import Lowering
from .base import CallsEngine, Engine, cond_engine, lower_program
from .capturable import is_number, why_not_capturable
from .captured import CapturedEngine
from .cuda.captures import captures_on
from .recording import Recorded

_log = logging.getLogger("dicache_compile")


def choose_engine(found: Cut, config: DiCacheConfig, lower: Lowering) -> Engine:
    """The engine that the config asks for; with "auto" the fastest that the graph can have on its device.

    Raises ValueError where an engine is asked for by name that the graph cannot have.
    """
    if config.engine == "cond":
        return cond_engine(found.program, lower)
    device = found.program.slots[0].device
    wanted = config.engine
    if wanted == "auto":
        wanted = "conditional" if device.type == "cuda" and config.lowering == "inductor" else "calls"
    reason = why_not_capturable(found, lower.examples) if wanted != "calls" else None
    if reason is not None and config.engine != "auto":
        raise ValueError(f"engine={config.engine!r} cannot run this model: {reason}")
    if reason is not None:
        _log.warning("a step runs on the engine 'calls', not %r: %s", wanted, reason)
    calls = CallsEngine(lower_program(found.program, lower), reason)
    if wanted == "calls" or reason is not None:
        return calls
    return CapturedEngine(
        _inputs(found, calls),
        calls,
        first=wanted,
        forced=config.engine != "auto",
        captures=partial(captures_on, device),
        names=[input_name(node) for node in found.placeholders],
    )


def _inputs(found: Cut, calls: CallsEngine) -> Recorded:
    kinds: dict[str, list[int]] = {"weight": [], "number": [], "changing": []}
    for place, node in enumerate(found.placeholders):
        number = values.tensor(node) is None or is_number(node, found.program.slots[0].device)
        kinds["number" if number else "weight" if values.is_weight(node) else "changing"].append(place)
    return Recorded(calls.program, tuple(kinds["changing"]), tuple(kinds["weight"]), tuple(kinds["number"]))
