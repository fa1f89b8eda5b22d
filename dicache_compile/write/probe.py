"""Writes what runs on every step: prologue, probe, statistics and decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..plan import Region
from ..program import DECISION, Kind, Value
from ..rules import GATE, CheckedEstimator, EstimateGate, FollowingEstimator, Gate, Seen, SlotSpec
from . import control
from .emit import Emitter, write_back
from .parts import Parts, aid_values, tensor
from .slots import Updates, check_names
from .trial import method_name


def write_probe(parts: Parts, emitter: Emitter) -> None:
    """P: gives the decision, what is known of the step, and the estimator's aids."""
    gate, streams = parts.rule.when, parts.partition.streams
    emitter.copy(parts.partition.nodes(Region.PROLOGUE, Region.PROBE))
    old = {slot.name: emitter.state(slot.name) for slot in parts.control_slots()}
    old[control.TIMES] = emitter.state(control.TIMES)
    timestep = parts.inputs.timestep
    time = old["clock"] if timestep is None else emitter.read(timestep)
    fresh, anew, now = emitter.trace(control.begin, time, *_checksums(parts, emitter, old), old)

    in_force = {
        name: emitter.trace(control.in_force, fresh, *(emitter.state(f"{name}{at}") for at in ("", control.NOW)))
        for name in (*(slot.name for slot in control.TOLD), *parts.rule.settings())
    }
    shared = _shared(parts, emitter, anew)
    seen = [parts.seen(emitter, place, now, in_force) for place in range(len(streams))]
    errors, aids = list[fx.Node](), list[Any]()
    for place, (of_gate, of_estimator) in enumerate(seen):
        error, aid = _measured(parts, emitter, of_gate, of_estimator)
        errors.append(error)
        aids.append(aid)
        for value, node in zip(
            aid_values(place, parts.aids[place]), aid if isinstance(aid, tuple) else (aid,), strict=False
        ):
            emitter.offer(value, node)
    error, first = emitter.trace(_largest_error, errors, now["anchors"])
    judged = replace(seen[0][0], state=shared | parts.told(GATE, in_force), error=error)
    within, compared = emitter.trace(gate.judge, judged)
    forced = emitter.trace(control.forced, now, in_force[control.SCHEDULE], in_force[control.DEEP_STEPS])
    may = emitter.trace(control.may_reuse, forced, now["skipped"], in_force[control.SCHEDULE])
    if parts.rule.joint:
        reuse, together = emitter.trace(control.decide_together, now, old, may, within, error)
    else:
        reuse, together = emitter.trace(torch.logical_and, may, within), {}
    emitter.offer(DECISION, reuse)
    for name, node in (("index", now["index"]), ("time", now["time"]), ("since", now["skipped"])):
        emitter.offer(Value(Kind.STEP, name), node)

    updates: Updates = {**now, **together, **{name + control.NOW: node for name, node in in_force.items()}}
    updates |= emitter.trace(control.finish, now, reuse)
    shown = parts.aids[0]
    gamma = aids[0] if isinstance(shown, Tensor) and not shown.dim() else None
    row = emitter.trace(control.columns, now, reuse, forced, first, error, compared, gamma)
    updates |= emitter.trace(control.record, row, old)
    settled = emitter.trace(gate.settle, replace(judged, error=compared, reused=reuse))
    check_names(gate.settle, settled, [spec.name for spec in gate.slots() if spec.shared])
    updates |= settled
    for place, (of_gate, of_estimator) in enumerate(seen):
        updates |= _followed(parts, emitter, place, replace(of_gate, reused=reuse))
        updates |= _counted(parts, emitter, place, replace(of_estimator, aid=aids[place], reused=reuse))
    write_back(emitter, updates)


def _measured(parts: Parts, emitter: Emitter, of_gate: Seen, of_estimator: Seen) -> tuple[fx.Node, Any]:
    """(the error of a carried value, the estimator's aid)."""
    gate, estimator = parts.rule.when, parts.rule.estimator
    aid = emitter.trace(estimator.aid, of_estimator)
    if isinstance(gate, EstimateGate):
        assert isinstance(estimator, CheckedEstimator)
        check = emitter.trace(estimator.check, replace(of_estimator, aid=aid))
        return emitter.trace(gate.measure_estimate, replace(of_gate, check=check)), aid
    assert isinstance(gate, Gate)
    return emitter.trace(gate.measure, of_gate), aid


def _aid_values(parts: Parts, place: int, aid: object) -> tuple[Value, ...]:
    """The values of an aid, which is what the trial of the estimator saw."""
    found, tried = aid_values(place, aid), aid_values(place, parts.aids[place])
    if found != tried:
        name = method_name(parts.rule.estimator.aid)
        raise ValueError(f"{name} gives {len(found)} tensors, and {len(tried)} when it is tried: expected as many")
    return found


def _followed(parts: Parts, emitter: Emitter, place: int, seen: Seen) -> Updates:
    """The gate's slots of a carried value after the decision."""
    gate = parts.rule.when
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


def _shared(parts: Parts, emitter: Emitter, anew: fx.Node) -> Updates:
    """The gate's shared slots, back at 0 where no anchor serves."""
    specs = [spec for spec in parts.rule.when.slots() if spec.shared]
    return {spec.name: emitter.trace(_zero_if, anew, emitter.state(spec.name)) for spec in specs}


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
