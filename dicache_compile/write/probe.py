"""Writes what a rule computes on every step that asks it: statistics, decision, record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..program import Value
from ..rules import FollowingEstimator, Seen
from . import control, record
from .ask import Question, ask
from .begin import step_start
from .emit import Emitter, write_back
from .judge import by_gate, by_schedule, written
from .parts import Parts
from .rows import ASKED, of_asked, unless_asked
from .slots import Updates, check_names
from .whole import Whole


def write_decision(
    whole: Whole, parts: Parts, emitter: Emitter, before: Value | None, around: Parts | None = None
) -> None:
    """What ends the piece before a rule's choice: gives the decision, what is known of the step, the estimator's aids.

    That of the rule that is asked first also begins the step. `before`: the decision of the rule asked before, in the
    same way of the same choices; None: there is none. `around`: the rule inside of whose deep way this one is asked.
    """
    begins = parts.cuts[0] is whole.cuts[0]
    start = step_start(whole, emitter) if begins else None
    found = ask(Question(whole, parts, emitter, start, before))
    begun, known, updates = found.begun, found.known, found.updates
    now, gate = begun.now, parts.rule.gate
    if gate is None or found.measured is None or found.verdict is None:
        decided = by_schedule(begun)
    else:
        decided = by_gate(parts, emitter, gate, begun, found.measured, found.verdict)
    reuse = decided.reuse
    asked = _decided(parts, emitter, reuse, around)
    emitter.offer(parts.step_value("since"), now[control.SKIPPED])

    columns = log_of(parts, emitter, known, now, reuse, begun.forced, decided.shown)
    log = {name: emitter.state(name) for name in ("log", "logged")}
    if begins:
        updates |= logged(whole, emitter, now, columns, log, parts.number)
    elif whole.rows is None:
        updates["log"] = emitter.trace(record.record_more, columns, log["log"], log["logged"], parts.number)
    else:
        known_log = (log["log"], log["logged"], parts.number, whole.rows.count)
        updates["log"] = emitter.trace_batch(record.record_more_rows, columns, asked, *known_log)
    skipped = emitter.trace(control.skipped_after, now[control.SKIPPED], reuse)
    own = {control.ANCHORS: now[control.ANCHORS], control.SKIPPED: skipped}
    own |= {name + control.NOW: node for name, node in begun.told.items()}
    updates |= {parts.own(name): node for name, node in own.items()}
    updates |= decided.updates
    for place in known:
        updates |= counted(parts, emitter, place, replace(known[place], reused=reuse))
    write_back(emitter, updates if asked is None else of_asked(emitter, updates, asked))


def _decided(parts: Parts, emitter: Emitter, reuse: fx.Node, around: Parts | None) -> fx.Node | None:
    """Offers the decision. Where rows decide for themselves: which of them ask the rule; None: all do."""
    if parts.rows is None:
        emitter.offer(parts.decision, reuse)
        return None
    asked, stays = None, reuse
    if around is not None:
        asked = emitter.trace(torch.logical_not, emitter.input(around.reuses))
        stays = emitter.trace(unless_asked, reuse, asked)
        emitter.offer(parts.step_value(ASKED), asked)
    emitter.offer(parts.reuses, stays)
    emitter.offer(parts.decision, emitter.trace_batch(torch.all, stays))
    return asked


def logged(
    whole: Whole, emitter: Emitter, now: Updates, columns: tuple[fx.Node, ...], log: Updates, rule: int
) -> Updates:
    """The record with this step, of which one rule's columns are known."""
    if whole.rows is None:
        found: Updates = emitter.trace(record.record, now, columns, log, rule, len(whole.parts))
    else:
        found = emitter.trace_batch(record.record_rows, now, columns, log, rule, len(whole.parts), whole.rows.count)
    return found


def log_of(
    parts: Parts,
    emitter: Emitter,
    known: Mapping[int, Seen],
    now: Updates,
    reuse: fx.Node,
    forced: fx.Node,
    shown: tuple[Any, Any, Any],
) -> tuple[fx.Node, ...]:
    """The rule's columns of the record."""
    first = next(iter(known), None)
    number = first is not None and isinstance(shape := parts.aids[first], Tensor) and not shape.dim()
    gamma = known[first].aid if number and first is not None else None
    columns: tuple[fx.Node, ...] = emitter.trace(record.columns, now, reuse, forced, *shown, gamma)
    return columns


def counted(parts: Parts, emitter: Emitter, place: int, seen: Seen) -> Updates:
    """What a carried value's estimator counts on every step."""
    estimator = parts.rule.estimator
    if not isinstance(estimator, FollowingEstimator):
        return {}
    numbers = [spec for spec in estimator.slots() if spec.like == "number"]
    new = emitter.trace(estimator.follow, seen)
    check_names(estimator.follow, new, [spec.name for spec in numbers], "slots that are numbers")
    return written(parts, emitter, place, [spec for spec in numbers if spec.name in new], new, seen)
