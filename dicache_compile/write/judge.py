"""Writes what a rule decides on a step: by its schedule, or by its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..program import Kind, Value
from ..rules import GATE, CheckedEstimator, Decider, EstimateGate, Gate, Seen, SlotSpec
from . import control
from .agree import ALL
from .emit import Emitter
from .parts import Parts
from .slots import Updates, check_names, join, split


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a step before a rule's decision."""

    now: Updates  # "index", "time", and the rule's "anchors" and "skipped" as this step finds them
    told: Updates  # what the host tells the rule of this generation, by its plain name
    fresh: fx.Node  # whether a generation starts
    anew: fx.Node  # whether no anchor serves
    forced: fx.Node  # whether the step runs deep in any case
    may: fx.Node  # whether it may reuse if the gate says so
    begins: bool  # whether the rule is the step's first, and the slot "time" still the last step's


@dataclass(frozen=True, slots=True)
class Decided:
    reuse: Any
    shown: tuple[Any, Any, Any]  # of the log: whether there is no error yet, the error, what was compared
    updates: Updates


def by_schedule(begun: Begun) -> Decided:
    return Decided(begun.may, (None, None, None), {})


@dataclass(frozen=True, slots=True)
class Measured:
    """What a gate measures before it decides."""

    seen: Mapping[int, Seen]  # by carried value
    error: fx.Node  # the step's
    first: fx.Node  # whether there is none, because no step before serves


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of it."""

    judged: Seen
    within: Any  # whether the step may be reused
    compared: Any  # the number that was compared


def measured(parts: Parts, emitter: Emitter, gate: Decider, begun: Begun, known: Mapping[int, Seen]) -> Measured:
    seen = {place: parts.seen(emitter, place, GATE, begun.now, begun.told) for place in parts.judged}
    errors = [_error(parts, emitter, gate, seen[place], known[place]) for place in seen]
    return Measured(seen, *emitter.trace(_largest_error, errors, begun.now["anchors"]))


def verdict_of(
    parts: Parts, emitter: Emitter, gate: Decider, begun: Begun, found: Measured, before: fx.Node
) -> Verdict:
    """The gate's word; `before`: whether the rule asked before reuses."""
    shared = {
        spec.name: emitter.trace(_zero_if, begun.anew, split(emitter, spec, parts.own(spec.name)))
        for spec in gate.slots()
        if spec.shared
    }
    state, earlier = shared | parts.told(GATE, begun.told), cast(Any, before)
    error = cast(Any, found.error)
    judged = replace(found.seen[parts.judged[0]], state=state, error=error, before=earlier)
    within, compared = emitter.trace(gate.judge, judged)
    if emitter.agreeing is not None:
        within, compared = emitter.agreeing.same(within, ALL), emitter.agreeing.same(compared)
    return Verdict(judged, within, compared)


def by_gate(parts: Parts, emitter: Emitter, gate: Decider, begun: Begun, found: Measured, verdict: Verdict) -> Decided:
    """The decision, and what the gate's slots become."""
    if parts.rule.joint:
        old = {name: emitter.state(parts.own(name)) for name in (*control.JOINT, control.LED)}
        old["time"] = emitter.state("time") if begun.begins else emitter.input(Value(Kind.STEP, "last_time"))
        given = (begun.now, old, begun.may, verdict.within, found.error)
        reuse, updates = emitter.trace(control.decide_together, *given)
    else:
        reuse, updates = emitter.trace(torch.logical_and, begun.may, verdict.within), {}
    settled = emitter.trace(gate.settle, replace(verdict.judged, error=verdict.compared, reused=reuse))
    check_names(gate.settle, settled, [spec.name for spec in gate.slots() if spec.shared])
    for spec in gate.slots():
        if spec.name in settled:
            settled[spec.name] = join(emitter, spec, settled[spec.name])
    updates = {parts.own(name): node for name, node in {**updates, **settled}.items()}
    for place, of_gate in found.seen.items():
        updates |= _followed(parts, emitter, gate, place, replace(of_gate, reused=reuse))
    return Decided(reuse, (found.first, found.error, verdict.compared), updates)


def _error(parts: Parts, emitter: Emitter, gate: Decider, of_gate: Seen, of_estimator: Seen) -> fx.Node:
    """The error of a carried value."""
    error: fx.Node
    if isinstance(gate, EstimateGate):
        assert isinstance(parts.rule.estimator, CheckedEstimator)
        check = emitter.trace(parts.rule.estimator.check, of_estimator)
        error = emitter.trace(gate.measure_estimate, replace(of_gate, check=check))
    else:
        assert isinstance(gate, Gate)
        error = emitter.trace(gate.measure, of_gate)
    return error if emitter.agreeing is None else emitter.agreeing.same(error)


def _followed(parts: Parts, emitter: Emitter, gate: Decider, place: int, seen: Seen) -> Updates:
    """The gate's slots of a carried value after the decision."""
    new = emitter.trace(gate.follow, seen)
    check_names(gate.follow, new, [spec.name for spec in gate.slots()])
    return written(parts, emitter, place, [spec for spec in gate.slots() if spec.name in new], new, seen)


def written(parts: Parts, emitter: Emitter, place: int, specs: Sequence[SlotSpec], new: Updates, seen: Seen) -> Updates:
    """What the slots of a carried value become that a method has given."""
    updates: Updates = {}
    for spec in specs:
        updates |= parts.slots_of(place).write(emitter, spec, new[spec.name], seen.anchors)
    return updates


# Traced into the graph, like the functions of `control`:


def _zero_if(anew: Tensor, state: Tensor) -> Tensor:
    return torch.where(anew, torch.zeros_like(state), state)


def _largest_error(errors: list[Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(the step's error, whether there is none because no step before serves). NaN in any stream stays NaN."""
    largest = errors[0]
    for error in errors[1:]:
        largest = torch.maximum(largest, error)
    first = anchors == 0
    return torch.where(first, torch.zeros_like(largest), largest), first
