"""Writes what is known of a step before a rule's decision: what is forced, and what its gate measures.

Where ranks decide as one, what each finds is put together of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from ..program import Kind, Value
from ..rules import ESTIMATOR, GATE, Seen, setting_slot
from . import control, guidance
from .agree import ANY, FIRST, Agreeing, Column, Rounds
from .begin import Start, step_begun
from .emit import Emitter
from .judge import Begun, Measured, Verdict, measured, verdict_of
from .parts import Parts, aid_values
from .slots import Updates
from .trial import method_name
from .whole import Whole


@dataclass(frozen=True, slots=True)
class Question:
    """A rule that is about to decide."""

    whole: Whole
    parts: Parts
    emitter: Emitter
    start: Start | None  # of the step; None: another rule began it
    before: Value | None  # the decision of the rule asked before


@dataclass(frozen=True, slots=True)
class Votes:
    """What all ranks say."""

    fresh: fx.Node  # whether a generation starts on any
    anew: fx.Node  # whether any has no anchor
    deep: fx.Node  # whether any has to run deep
    told: Updates  # what the first one's gate is told, by slot


@dataclass(frozen=True, slots=True)
class Asked:
    begun: Begun
    updates: Updates  # of the step's slots
    known: Mapping[int, Seen]  # what the estimator sees of each carried value, with its aid
    measured: Measured | None  # None: a schedule decides
    verdict: Verdict | None  # the same


def ask(question: Question) -> Asked:
    """What is known before the decision."""
    agreeing = question.emitter.agreeing
    if agreeing is None:
        return _judged(question, _asked(question, None))
    if agreeing.group.hold == "branches":
        return _first_leads(question, agreeing)
    rounds = agreeing.rounds = Rounds(agreeing)
    asked = _asked(question, None)
    (*voted,) = rounds.close(_columns(question, asked.begun))
    votes = _votes(question, voted)
    while True:
        rounds.begin()
        asked = _asked(question, votes)
        if rounds.is_done:
            agreeing.rounds = None
            return _judged(question, asked)
        rounds.close()


def _first_leads(question: Question, agreeing: Agreeing) -> Asked:
    """Of ranks that have other calls of one step: each does as the first one's gate says, unless one cannot."""
    emitter = question.emitter
    asked = _judged(question, _asked(question, None))
    assert asked.measured is not None
    assert asked.verdict is not None
    cannot = Column(emitter.trace(_is_none, asked.measured.error), ANY)
    word = Column(emitter.trace(_as_number, asked.verdict.within), FIRST)
    first, none, *voted = agreeing.gather([word, cannot, *_columns(question, asked.begun)])
    within = emitter.trace(_may_follow, first, none)
    begun, updates = _begin(question, _votes(question, voted))
    return replace(asked, begun=begun, updates=updates, verdict=replace(asked.verdict, within=within))


def _columns(question: Question, begun: Begun) -> list[Column]:
    """What each rank has to say besides what it measures."""
    deep = question.emitter.trace(torch.logical_not, begun.may)
    own = [Column(node, ANY) for node in (begun.fresh, begun.anew, deep)]
    return [*own, *(Column(begun.told[slot], FIRST) for slot in _of_gate(question.parts))]


def _votes(question: Question, voted: Sequence[fx.Node]) -> Votes:
    fresh, anew, deep, *told = voted
    return Votes(fresh, anew, deep, dict(zip(_of_gate(question.parts), told, strict=True)))


def _of_gate(parts: Parts) -> list[str]:
    """The slots of the gate's settings that are one number: with a threshold for each, ranks would decide apart."""
    assert parts.rule.gate is not None
    return [setting_slot(GATE, setting.name) for setting in parts.rule.gate.settings() if not setting.shape]


def _asked(question: Question, votes: Votes | None) -> Asked:
    """What this rank finds where all say so; None: it has not asked them."""
    parts, emitter = question.parts, question.emitter
    begun, updates = _begin(question, votes)
    seen = {place: parts.seen(emitter, place, ESTIMATOR, begun.now, begun.told) for place in parts.measured}
    known = {place: offer_aid(parts, emitter, place, one) for place, one in seen.items()}
    gate = parts.rule.gate
    found = measured(parts, emitter, gate, begun, known) if gate is not None else None
    return Asked(begun, updates, known, found, None)


def _judged(question: Question, asked: Asked) -> Asked:
    parts, emitter, gate = question.parts, question.emitter, question.parts.rule.gate
    if gate is None or asked.measured is None:
        return asked
    before = question.before
    earlier = emitter.input(before) if before is not None else emitter.trace(control.asked_first, asked.begun.may)
    return replace(asked, verdict=verdict_of(parts, emitter, gate, asked.begun, asked.measured, earlier))


def _begin(question: Question, votes: Votes | None) -> tuple[Begun, Updates]:
    """(what is forced, and by how many anchors; the step's slots after it)."""
    whole, parts, emitter, start = question.whole, question.parts, question.emitter, question.start
    if start is None:
        fresh, anew = (emitter.input(Value(Kind.STEP, name)) for name in ("fresh", "anew"))
    else:
        fresh, anew = start.found["fresh"], start.found["anew"]
    counts = [emitter.state(parts.own(name)) for name in (control.ANCHORS, control.SKIPPED)]
    if votes is not None:
        fresh, anew = votes.fresh, votes.anew
    elif emitter.agreeing is not None:  # a rank may have lost its anchors alone
        anew = emitter.trace(control.without_anchors, anew, counts[0])
    now: Updates
    updates: Updates
    if start is None:
        now, updates = {name: emitter.input(Value(Kind.STEP, name)) for name in ("index", "time")}, {}
    else:
        now, updates = step_begun(whole, emitter, start, fresh, anew)
    now = now | emitter.trace(control.serving, anew, *counts)
    told: Updates = {}
    for name in (*(slot.name for slot in control.TOLD), *parts.rule.settings()):
        both = (emitter.state(parts.own(f"{name}{at}")) for at in ("", control.NOW))
        told[name] = emitter.trace(control.in_force, fresh, *both)
    forced = emitter.trace(control.forced, now, told[control.LIMITS], told[control.DEEP_STEPS])
    if parts.is_guided:
        forced = emitter.trace(guidance.either, forced, _apart(whole, parts, emitter, now))
    may = emitter.trace(control.may_reuse, forced, now[control.SKIPPED], told[control.LIMITS])
    if votes is not None:
        told |= votes.told
        may = emitter.trace(control.unless, may, votes.deep)
    return Begun(now, told, fresh, anew, forced, may, start is not None), updates


def _apart(whole: Whole, parts: Parts, emitter: Emitter, now: Updates) -> fx.Node:
    """Whether the step runs deep because its partner's is not known. Offers what that needs of it."""
    latents = whole.inputs.latents
    assert latents is not None  # or the graph would not have been cut
    names = (guidance.ROLE, control.PARTNER_MARK, guidance.PARTNER_EPOCH, guidance.PAIRED)
    state = {name: emitter.state(parts.own(name)) for name in names}
    mark, met, apart = emitter.trace(guidance.meet, now["time"], emitter.split(emitter.read(latents)), state)
    emitter.offer(parts.step_value(guidance.MARK), mark)
    emitter.offer(parts.step_value(guidance.MET), met)
    found: fx.Node = apart
    return found


def offer_aid(parts: Parts, emitter: Emitter, place: int, seen: Seen) -> Seen:
    """What is seen with the estimator's aid, which later pieces may read."""
    aid = emitter.trace(parts.rule.estimator.aid, seen)
    for value, node in zip(_aid_values(parts, place, aid), aid if isinstance(aid, tuple) else (aid,), strict=False):
        emitter.offer(value, node)
    return replace(seen, aid=aid)


def _aid_values(parts: Parts, place: int, aid: object) -> tuple[Value, ...]:
    """The values of an aid, which is what the trial of the estimator saw."""
    found, tried = aid_values(place, aid), aid_values(place, parts.aids[place])
    if found != tried:
        name = method_name(parts.rule.estimator.aid)
        raise ValueError(f"{name} gives {len(found)} tensors, and {len(tried)} when it is tried: expected as many")
    return found


# Traced into the graph:


def _is_none(error: Tensor) -> Tensor:
    return ~(error < math.inf)


def _as_number(within: Tensor) -> Tensor:
    return within.to(torch.float32)


def _may_follow(word: Tensor, none: Tensor) -> Tensor:
    return (word > 0) & ~none
