"""Writes what comes after a decision: the deep blocks, and what stands in for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..plan import Partition
from ..program import Kind, Value
from ..rules import ANCHOR_STEP, ANCHOR_TIME, GATE, GIVEN_SLOTS, PARTNER, KeepingEstimator, LearningGate, Seen
from . import control, guidance, strides
from .emit import Emitter, memory_of, write_back
from .parts import Parts, tensor
from .rows import ASKED, merged, of_asked
from .slots import Updates, check_names
from .tokens import renewed


def write_deep(
    parts: Parts, cut: Partition, emitter: Emitter, nodes: Sequence[fx.Node], last: bool, within: bool
) -> None:
    """D: deep blocks and new anchor. Of several sites also what runs between them. `last`: of the rule's cuts.
    `within`: whether it is asked in another rule's deep way alone. Where rows decide for themselves, those that reuse
    take their estimates here, and keep their anchors.
    """
    updates, kept = Updates(), Updates()
    stretches, rest = _up_to_each(parts, cut, nodes)
    for place, up_to in stretches:
        # What comes after may write to y.
        emitter.copy(up_to)
        updates |= _anchored(parts, emitter, place, apart=cut.in_turns)
        updates |= _learned(parts, emitter, place, updates, apart=cut.in_turns)
        if parts.rows is not None:
            kept |= _stood_in(parts, emitter, place, emitter.read(parts.carried[place].y))
    emitter.copy(rest)
    if last:
        anchors = parts.own(control.ANCHORS)
        updates = {anchors: emitter.trace(_one_more, emitter.state(anchors)), **updates}
        updates |= _met(parts, emitter)
    if parts.rows is not None:
        kept = of_asked(emitter, kept, emitter.input(parts.step_value(ASKED))) if within else kept
        stays = emitter.input(parts.reuses)
        updates = merged(emitter, emitter.trace(torch.logical_not, stays), updates, kept)
    write_back(emitter, updates)


def write_stand_in(parts: Parts, cut: Partition, emitter: Emitter, nodes: Sequence[fx.Node], within: bool) -> None:
    """R: the estimates of what the deep blocks would give. Of several sites also what runs between them. `within` as in
    `write_deep`.
    """
    updates: Updates = {}
    stretches, rest = _up_to_each(parts, cut, nodes)
    for place, up_to in stretches:
        emitter.copy(up_to)
        updates |= _stood_in(parts, emitter, place)
    emitter.copy(rest)
    if within and parts.rows is not None:
        updates = of_asked(emitter, updates, emitter.input(parts.step_value(ASKED)))
    write_back(emitter, updates)


def _stood_in(parts: Parts, emitter: Emitter, place: int, result: fx.Node | None = None) -> Updates:
    """Puts the estimate of a carried value in its place, and says what its slots become. `result`: what the deep blocks
    gave, which the rows keep that need it.
    """
    seen, new = renewed(parts, emitter, place)
    estimate = _estimated(parts, emitter, place, seen)
    stood_in = estimate
    if result is not None:
        stood_in = emitter.choose(emitter.input(parts.reuses), estimate, result)
    emitter.replace(parts.carried[place].y, stood_in)
    # It is written at the end, and what comes before may write to the estimate.
    kept = {**new, **_kept(parts, emitter, place, seen, estimate)}
    return _written(parts, emitter, place, kept, estimate, apart=True)


def _up_to_each(
    parts: Parts, cut: Partition, nodes: Sequence[fx.Node]
) -> tuple[list[tuple[int, list[fx.Node]]], list[fx.Node]]:
    """(for each value that a cut carries, in the order of their y, the nodes up to it since the one before; the nodes
    left).
    """
    order = {node: place for place, node in enumerate(cut.graph_module.graph.nodes)}
    ends = {place: order[parts.carried[place].y] for place in parts.places(cut)}
    left, found = list(nodes), []
    for place in sorted(ends, key=lambda place: ends[place]):
        found.append((place, [node for node in left if order[node] <= ends[place]]))
        left = [node for node in left if order[node] > ends[place]]
    return found, left


def _anchored(parts: Parts, emitter: Emitter, place: int, apart: bool) -> Updates:
    """A carried value's new anchor; `apart`: in memory of its own, because it is written later."""
    estimator, y = parts.estimator(place), emitter.read(parts.carried[place].y)
    given: Any = emitter.part(emitter.split(y))
    seen = replace(parts.later(emitter, place), y=given)
    new = emitter.trace(estimator.anchor, seen)
    own = [spec.name for spec in estimator.slots() if spec.name not in GIVEN_SLOTS]
    check_names(estimator.anchor, new, own, all_of_them=True)
    new |= {ANCHOR_TIME: seen.time, ANCHOR_STEP: seen.index}
    if parts.is_guided:
        role = emitter.state(parts.own(guidance.ROLE))
        new[PARTNER] = emitter.trace(guidance.partner_after, role, given, seen.partner)
    return _written(parts, emitter, place, new, y, apart)


def _met(parts: Parts, emitter: Emitter) -> Updates:
    """What a rule that goes by another call has of its step."""
    if not parts.is_guided:
        return {}
    names = (guidance.ROLE, control.PARTNER_MARK, guidance.PARTNER_EPOCH)
    state = {name: emitter.state(parts.own(name)) for name in names}
    mark, met = (emitter.input(parts.step_value(name)) for name in (guidance.MARK, guidance.MET))
    anew = emitter.input(parts.step_value("anew"))
    new = emitter.trace(guidance.met_after, mark, met, anew, state)
    return {parts.own(name): node for name, node in new.items()}


def _written(parts: Parts, emitter: Emitter, place: int, new: Updates, y: fx.Node, apart: bool) -> Updates:
    """What an estimator's slots become; `apart` as in `_anchored`."""
    by_token = parts.carried[place].by_token
    read = (y,) if by_token is None else (y, emitter.read(by_token.entry))
    updates: Updates = {}
    for spec in parts.estimator(place).slots():
        if spec.name in new:
            value = _apart(emitter, new[spec.name], *read) if apart else new[spec.name]
            updates |= parts.slots_of(place).write(emitter, spec, value, emitter.state(parts.own(control.ANCHORS)))
    return updates


def _kept(parts: Parts, emitter: Emitter, place: int, seen: Seen, estimate: Any) -> Updates:
    """What the estimator keeps of its own estimate."""
    estimator = parts.estimator(place)
    if not isinstance(estimator, KeepingEstimator):
        return {}
    given: Any = emitter.part(emitter.split(estimate))
    new: Updates = emitter.trace(estimator.keep, replace(seen, y=given))
    own = [spec.name for spec in estimator.slots() if not spec.history]
    check_names(estimator.keep, new, own, "slots without a history")
    return new


def _learned(parts: Parts, emitter: Emitter, place: int, before: Updates, apart: bool) -> Updates:
    """What the gate learns from a carried value's result; `before`: from those before it; `apart` as in `_anchored`."""
    gate, y = parts.rule.gate, emitter.read(parts.carried[place].y)
    if not isinstance(gate, LearningGate) or place not in parts.learned:
        return {}
    given: Any = emitter.part(emitter.split(y))
    seen = parts.later(emitter, place, GATE)
    shared = [spec.name for spec in gate.slots() if spec.shared and parts.own(spec.name) in before]
    state = {**seen.state, **{name: before[parts.own(name)] for name in shared}}
    new = emitter.trace(gate.learn, replace(seen, y=given, state=state))
    check_names(gate.learn, new, [spec.name for spec in gate.slots()])
    updates: Updates = {}
    for spec in gate.slots():
        if spec.name in new:
            value = _apart(emitter, new[spec.name], y) if apart else new[spec.name]
            updates |= parts.slots_of(place).write(emitter, spec, value, None)
    return updates


def _apart(emitter: Emitter, value: Any, *others: fx.Node) -> Any:
    """A value in memory that is not the others'."""
    theirs = {memory for other in others for memory in (other, memory_of(other))}
    return emitter.method(value, "clone") if memory_of(value) in theirs else value


def _estimated(parts: Parts, emitter: Emitter, place: int, seen: Seen) -> fx.Node:
    """What stands in for a carried value's y, as that is: of its dtype, lying in memory as it does."""
    carried = parts.carried[place]
    y: fx.Node = emitter.join(emitter.trace(parts.estimator(place).estimate, seen))
    recorded = tensor(carried.y)
    if memory_of(y).op == "placeholder":  # the model's caller must not get hold of the state
        y = emitter.method(y, "clone")
    y = emitter.method(y, "to", recorded.dtype)
    if (order := strides.order_of(recorded, tensor(carried.x))) is not None:
        y = emitter.trace(strides.laid_out, y, order)
    return y


def write_outputs(graph_module: fx.GraphModule, emitter: Emitter) -> tuple[Value, ...]:
    """The values that the model's graph returns, given by its last piece."""
    returned = next(iter(reversed(graph_module.graph.nodes))).args[0]
    assert isinstance(returned, (tuple, list))
    outputs = tuple(Value(Kind.OUTPUT, str(place)) for place in range(len(returned)))
    for value, node in zip(outputs, returned, strict=True):
        emitter.offer(value, emitter.read(node) if isinstance(node, fx.Node) else node)
    return outputs


# Traced into the graph:


def _one_more(anchors: Tensor) -> Tensor:
    return anchors + 1
