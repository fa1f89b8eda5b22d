"""Writes what a reused step runs where the host knows that it is one: no decision, no sums over the conditions.

It is the only piece of such a step: prologue, estimate and epilogue are compiled together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from ..program import Kind, Piece, Value
from ..rules import ESTIMATOR
from . import control
from .ask import offer_aid
from .begin import of_step
from .emit import Emitter, write_back
from .parts import Parts
from .probe import counted, log_of, logged
from .whole import Whole


def write_known(whole: Whole, parts: Parts, emitter: Emitter, rest: Piece) -> Piece:
    """What comes before the estimate and all after it, which is `rest`: gives what that reads."""
    old = {name: emitter.state(name) for name in ("index", "stable", control.TIMES)}
    timestep = whole.inputs.timestep
    time = emitter.state(control.CLOCK) if timestep is None else of_step(whole, emitter, timestep)
    now, updates = emitter.trace(control.go_on, time, old)
    counts = {name: emitter.state(parts.own(name)) for name in (control.ANCHORS, control.SKIPPED)}
    # Who reads it comes after it is written.
    now |= {**counts, control.SKIPPED: emitter.trace(control.copied, counts[control.SKIPPED])}
    told = {name: emitter.state(parts.own(name + control.NOW)) for name in parts.rule.settings()}
    reuse = emitter.trace(control.reused, now["time"])
    for name in ("index", "time"):
        emitter.offer(Value(Kind.STEP, name), now[name])
    emitter.offer(parts.step_value("since"), now[control.SKIPPED])
    seen = {place: parts.seen(emitter, place, ESTIMATOR, now, told) for place in parts.measured}
    known = {place: offer_aid(parts, emitter, place, one) for place, one in seen.items()}
    forced = emitter.trace(control.not_forced, reuse)
    columns = log_of(parts, emitter, known, now, reuse, forced, (None, None, None))
    log = {name: emitter.state(name) for name in ("log", "logged")}
    updates |= logged(whole, emitter, now, columns, log, 0)
    updates[parts.own(control.SKIPPED)] = emitter.trace(control.skipped_after, now[control.SKIPPED], reuse)
    for place, one in known.items():
        updates |= counted(parts, emitter, place, replace(one, reused=cast(Any, reuse)))
    write_back(emitter, updates)
    return emitter.piece(rest.reads)
