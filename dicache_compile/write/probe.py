"""Writes what runs on every step: prologue, probe, statistics and decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..plan import Region
from ..program import DECISION, Kind, Value
from ..rules import (
    ESTIMATOR,
    GATE,
    CheckedEstimator,
    Decider,
    EstimateGate,
    FollowingEstimator,
    Gate,
    Seen,
    SlotSpec,
)
from . import control
from .emit import Emitter, write_back
from .parts import Parts, aid_values, tensor
from .slots import Updates, check_names
from .trial import method_name


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is known of a step before the decision."""

    old: Updates  # the control slots, as the last step left them
    now: Updates  # those of them that the start of this step changes
    told: Updates  # what the host tells of this generation, by slot
    anew: fx.Node  # whether no anchor serves
    forced: fx.Node  # whether the step runs deep in any case
    may: fx.Node  # whether it may reuse if the gate says so


@dataclass(frozen=True, slots=True)
class _Decided:
    reuse: Any
    shown: tuple[Any, Any, Any]  # of the log: whether there is no error yet, the error, what was compared
    updates: Updates


def write_probe(parts: Parts, emitter: Emitter) -> None:
    """P: gives the decision, what is known of the step, and the estimator's aids."""
    emitter.copy(parts.partition.nodes(Region.PROLOGUE, Region.PROBE))
    begun = _begun(parts, emitter)
    now, places = begun.now, parts.measured
    known = {place: parts.seen(emitter, place, ESTIMATOR, now, begun.told) for place in places}
    for place in places:
        aid = emitter.trace(parts.rule.estimator.aid, known[place])
        known[place] = replace(known[place], aid=aid)
        given = aid if isinstance(aid, tuple) else (aid,)
        for value, node in zip(_aid_values(parts, place, aid), given, strict=False):
            emitter.offer(value, node)
    gate = parts.rule.gate
    decided = _by_schedule(begun) if gate is None else _by_gate(parts, emitter, gate, begun, known)
    reuse = decided.reuse
    emitter.offer(DECISION, reuse)
    for name, node in (("index", now["index"]), ("time", now["time"]), ("since", now["skipped"])):
        emitter.offer(Value(Kind.STEP, name), node)

    updates: Updates = {**now, **{name + control.NOW: node for name, node in begun.told.items()}}
    updates |= emitter.trace(control.finish, now, reuse)
    number = bool(places) and isinstance(shape := parts.aids[places[0]], Tensor) and not shape.dim()
    gamma = known[places[0]].aid if number else None
    row = emitter.trace(control.columns, now, reuse, begun.forced, *decided.shown, gamma)
    updates |= emitter.trace(control.record, row, begun.old)
    updates |= decided.updates
    for place in places:
        updates |= _counted(parts, emitter, place, replace(known[place], reused=reuse))
    write_back(emitter, updates)


def _begun(parts: Parts, emitter: Emitter) -> _Begun:
    """Whether a generation starts with this step, and what is forced."""
    old = {slot.name: emitter.state(slot.name) for slot in parts.control_slots()}
    old[control.TIMES] = emitter.state(control.TIMES)
    timestep = parts.inputs.timestep
    time = old["clock"] if timestep is None else emitter.read(timestep)
    fresh, anew, now = emitter.trace(control.begin, time, *_checksums(parts, emitter, old), old)
    told = {
        name: emitter.trace(control.in_force, fresh, *(emitter.state(f"{name}{at}") for at in ("", control.NOW)))
        for name in (*(slot.name for slot in control.TOLD), *parts.rule.settings())
    }
    forced = emitter.trace(control.forced, now, told[control.LIMITS], told[control.DEEP_STEPS])
    may = emitter.trace(control.may_reuse, forced, now["skipped"], told[control.LIMITS])
    return _Begun(old, now, told, anew, forced, may)


def _by_schedule(begun: _Begun) -> _Decided:
    return _Decided(begun.may, (None, None, None), {})


def _by_gate(parts: Parts, emitter: Emitter, gate: Decider, begun: _Begun, known: Mapping[int, Seen]) -> _Decided:
    """The gate's decision, and what its slots become."""
    seen = {place: parts.seen(emitter, place, GATE, begun.now, begun.told) for place in known}
    errors = [_error(parts, emitter, gate, seen[place], known[place]) for place in known]
    error, first = emitter.trace(_largest_error, errors, begun.now["anchors"])
    shared = {
        spec.name: emitter.trace(_zero_if, begun.anew, emitter.state(spec.name)) for spec in gate.slots() if spec.shared
    }
    judged = replace(seen[parts.measured[0]], state=shared | parts.told(GATE, begun.told), error=error)
    within, compared = emitter.trace(gate.judge, judged)
    if parts.rule.joint:
        arguments = (begun.now, begun.old, begun.may, within, error)
        reuse, updates = emitter.trace(control.decide_together, *arguments)
    else:
        reuse, updates = emitter.trace(torch.logical_and, begun.may, within), {}
    settled = emitter.trace(gate.settle, replace(judged, error=compared, reused=reuse))
    check_names(gate.settle, settled, list(shared))
    updates = {**updates, **settled}
    for place, of_gate in seen.items():
        updates |= _followed(parts, emitter, gate, place, replace(of_gate, reused=reuse))
    return _Decided(reuse, (first, error, compared), updates)


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
    return error


def _aid_values(parts: Parts, place: int, aid: object) -> tuple[Value, ...]:
    """The values of an aid, which is what the trial of the estimator saw."""
    found, tried = aid_values(place, aid), aid_values(place, parts.aids[place])
    if found != tried:
        name = method_name(parts.rule.estimator.aid)
        raise ValueError(f"{name} gives {len(found)} tensors, and {len(tried)} when it is tried: expected as many")
    return found


def _followed(parts: Parts, emitter: Emitter, gate: Decider, place: int, seen: Seen) -> Updates:
    """The gate's slots of a carried value after the decision."""
    new = emitter.trace(gate.follow, seen)
    check_names(gate.follow, new, [spec.name for spec in gate.slots()])
    written = [spec for spec in gate.slots() if spec.name in new]
    return _written(parts, emitter, place, written, new, seen)


def _counted(parts: Parts, emitter: Emitter, place: int, seen: Seen) -> Updates:
    """What a carried value's estimator counts on every step."""
    estimator = parts.rule.estimator
    if not isinstance(estimator, FollowingEstimator):
        return {}
    numbers = [spec for spec in estimator.slots() if spec.like == "number"]
    new = emitter.trace(estimator.follow, seen)
    check_names(estimator.follow, new, [spec.name for spec in numbers], "slots that are numbers")
    return _written(parts, emitter, place, [spec for spec in numbers if spec.name in new], new, seen)


def _written(
    parts: Parts, emitter: Emitter, place: int, specs: Sequence[SlotSpec], new: Updates, seen: Seen
) -> Updates:
    updates: Updates = {}
    for spec in specs:
        updates |= parts.slots_of(place).write(emitter, spec, new[spec.name], seen.anchors)
    return updates


def _checksums(parts: Parts, emitter: Emitter, old: Updates) -> tuple[fx.Node, fx.Node]:
    """(the conditions' checksums, their sizes, against which a change of those counts)."""
    if not parts.inputs.conditions:
        return old["checksums"], old["checksums"]
    sums, sizes = [], []
    for node in parts.inputs.conditions:
        condition = emitter.read(node)
        sums.append(emitter.trace(control.checksum, condition))
        of = control.size if tensor(node).is_floating_point() else control.nothing
        sizes.append(emitter.trace(of, condition))
    return emitter.trace(torch.stack, sums), emitter.trace(torch.stack, sizes)


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
