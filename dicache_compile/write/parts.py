"""What every piece of a step is written from: the cut graph, the rule, and how both see a carried value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import symbols, values
from ..passes.crossing import ABOVE
from ..plan import Inputs, Partition, Region
from ..program import Kind, Slot, Value
from ..rules import ESTIMATOR, Aid, Rule, Seen, setting_slot
from . import control
from .emit import Emitter
from .slots import CarriedSlots, Updates
from .trial import try_rule

_COUNTS = {"index": "index", "time": "time", "anchors": "anchors", "since": "skipped"}  # what `Seen` has: the slots


@dataclass(frozen=True)
class Parts:
    """A cut graph and a rule. Raises TypeError or ValueError where the rule's methods give what they may not."""

    partition: Partition
    inputs: Inputs
    rule: Rule
    slots: tuple[Slot, ...] = field(init=False)  # the tensors of a stream's state
    aids: tuple[Aid, ...] = field(init=False)  # what the estimator's aids look like, by carried value

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", self._all_slots())  # first, because it refuses slots that clash
        shown = [
            self.slots_of(place).shown((carried.x, carried.h, carried.y), self.rule.slots())
            for place, carried in enumerate(self.partition.carried)
        ]
        object.__setattr__(self, "aids", tuple(try_rule(self.rule.gate, self.rule.estimator, shown, self.device)))

    def emitter(self, name: str) -> Emitter:
        shaped_like = {slot.value: slot.like for slot in self.slots if slot.like is not None}
        return Emitter(
            name, self.partition.graph_module, self.partition.autocast, shaped_like, self._sizes, self.device
        )

    @cached_property
    def _sizes(self) -> Mapping[Any, fx.Node]:
        """The nodes that give the symbols of shapes; of those of the deep region nobody else knows."""
        regions = self.partition.regions
        nodes = self.partition.graph_module.graph.nodes
        return symbols.definers(node for node in nodes if regions.get(node) is not Region.DEEP)

    def seen(self, emitter: Emitter, place: int, role: str, now: Updates, told: Updates) -> Seen:
        """A carried value before the decision, as the gate or the estimator sees it."""
        carried, of = self.partition.carried[place], self.rule.by(role)
        specs = [spec for spec in of.slots() if not spec.shared]
        return _in_nodes(
            emitter.read(carried.x),
            emitter.read(carried.h),
            {**self.slots_of(place).read(emitter, specs, now["anchors"]), **self.told(role, told)},
            {name: now[slot] for name, slot in _COUNTS.items()},
        )

    def later(self, emitter: Emitter, place: int) -> Seen:
        """A carried value after the decision, as the estimator sees it; what is told is what P left behind."""
        carried, anchors = self.partition.carried[place], emitter.state("anchors")
        counts = {name: emitter.input(Value(Kind.STEP, name)) for name in ("index", "time", "since")}
        state = self.slots_of(place).read(emitter, self.rule.estimator.slots(), anchors)
        told = {name: emitter.state(f"{name}{control.NOW}") for name in self.rule.settings()}
        # A value that is kept as it is has nothing before it.
        nothing = emitter.trace(torch.zeros, ()) if carried.form == "value" else None
        seen = _in_nodes(
            emitter.read(carried.x) if nothing is None else nothing,
            emitter.read(carried.h) if nothing is None else nothing,
            {**state, **self.told(ESTIMATOR, told)},
            {**counts, "anchors": anchors},
        )
        if place not in self.measured:  # of another site than the first: its aid is not wanted before the decision
            return replace(seen, aid=emitter.trace(self.rule.estimator.aid, seen))
        return replace(seen, aid=self._aid(emitter, place))

    def _aid(self, emitter: Emitter, place: int) -> object:
        """The estimator's aid in a later piece."""
        aid = self.aids[place]
        nodes = tuple(emitter.input(value) for value in aid_values(place, aid))
        return nodes if isinstance(aid, tuple) else nodes[0] if nodes else None

    def told(self, role: str, told: Mapping[str, fx.Node]) -> Updates:
        """The settings of a gate or an estimator, by the names that it knows, of the values of all."""
        return {setting.name: told[setting_slot(role, setting.name)] for setting in self.rule.by(role).settings()}

    def control_slots(self) -> tuple[control.ControlSlot, ...]:
        return control.control_slots(len(self.inputs.conditions), self.rule.joint)

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """The places of the carried values that are known before the decision: those of the first site."""
        regions, carried = self.partition.regions, self.partition.carried
        return tuple(place for place, value in enumerate(carried) if regions.get(value.h, Region.PROBE) in ABOVE)

    def slots_of(self, place: int) -> CarriedSlots:
        x = self.partition.carried[place].x
        carried = tensor(x)
        return CarriedSlots(place, x, carried.dtype, self.rule.state_dtype or carried.dtype, carried.device)

    @property
    def device(self) -> torch.device:
        return tensor(self.partition.carried[0].x).device

    def _all_slots(self) -> tuple[Slot, ...]:
        found = [
            Slot(slot.name, None, slot.shape, slot.dtype, self.device, slot.initial) for slot in self.control_slots()
        ]
        timestep = self.inputs.timestep
        shaped = timestep if timestep is not None and values.tensor(timestep) is not None else None
        found.append(Slot(control.TIMES, shaped, (), torch.float32, self.device, math.nan))
        for name, setting in self.rule.settings().items():
            both = (name, name + control.NOW)
            found += [Slot(slot, None, setting.shape, torch.float32, self.device, 0) for slot in both]
        gate = self.rule.gate
        if gate is not None and any(spec.history for spec in gate.slots()):
            raise ValueError("a gate's slot cannot have a history: `follow` writes it on every step")
        if any(spec.shared for spec in self.rule.estimator.slots()):
            raise ValueError("an estimator's slot cannot be shared: each carried value has its own")
        for spec in gate.slots() if gate is not None else ():
            for place in self.measured[:1] if spec.shared else self.measured:
                found += self.slots_of(place).slots([spec])
        for spec in self.rule.estimator.slots():
            for place in range(len(self.partition.carried)):
                found += self.slots_of(place).slots([spec])
        names = [slot.name for slot in found]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two slots are named {name!r}: the gate and the estimator need names of their own")
        return tuple(found)


def _in_nodes(x: fx.Node, h: fx.Node, state: Mapping[str, fx.Node], counts: Mapping[str, fx.Node]) -> Seen:
    """What is seen, in nodes that stand for the tensors while methods are traced."""
    return Seen(x=x, h=h, state=state, **counts)  # type: ignore[arg-type]


def aid_values(place: int, aid: object) -> tuple[Value, ...]:
    """The values of a carried value's aid: one for each tensor."""
    if isinstance(aid, tuple):
        return tuple(Value(Kind.AID, f"{place}.{part}") for part in range(len(aid)))
    return () if aid is None else (Value(Kind.AID, str(place)),)


def tensor(node: fx.Node) -> Tensor:
    """The fake tensor of a node that is one."""
    recorded = values.tensor(node)
    assert recorded is not None
    return recorded
