"""What the pieces of a rule are written from: its cuts, and how the rule sees what they carry."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx

from ..errors import NoResultError
from ..graph import values
from ..in_force import Rule
from ..passes.crossing import ABOVE
from ..plan import Carried, Group, Partition, Region
from ..program import Kind, Slot, Value, of_rule
from ..rules import ESTIMATOR, GATE, Aid, Estimator, GuidedEstimator, Seen, TokenEstimator, setting_slot
from . import control
from .control import ControlSlot
from .emit import Emitter
from .guidance import guidance_slots
from .rows import STAYS, Rows
from .slots import CarriedSlots, Updates
from .trial import try_rule

OF_STEP = ("index", "time", "fresh", "anew")


@dataclass(frozen=True)
class Parts:
    """A rule with its cuts. Raises TypeError or ValueError where the rule's methods give what they may not."""

    number: int  # of the rule
    rule: Rule
    cuts: tuple[Partition, ...]  # in the order in which they run
    first: int  # the place of its first carried value among those of all rules
    rows: Rows | None  # that decide for themselves; None: all of a batch together
    ranks: Group | None  # that decide as one; None: each for itself, or by a schedule, which is the same on all
    slots: tuple[Slot, ...] = field(init=False)  # what a stream keeps for it
    aids: Mapping[int, Aid] = field(init=False)  # what the estimator's aids look like, by carried value

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self._slots()))  # first, because it refuses slots that clash
        of_gate = self.rule.gate.slots() if self.rule.gate is not None else ()
        shown = []
        for place, carried in self.carried.items():
            x = carried.x if carried.by_token is None else carried.by_token.entry
            of_estimator = self.estimator(place)
            specs = (*of_gate, *of_estimator.slots())
            shown.append((of_estimator, self.slots_of(place).shown((x, carried.h, carried.y), specs)))
        tried = try_rule(self.rule.gate, shown, self.device)
        object.__setattr__(self, "aids", dict(zip(self.carried, tried, strict=True)))

    @cached_property
    def carried(self) -> Mapping[int, Carried]:
        """By its place among those of all rules."""
        return dict(enumerate((value for cut in self.cuts for value in cut.carried), start=self.first))

    @property
    def is_guided(self) -> bool:
        return isinstance(self.rule.estimator, GuidedEstimator)

    def estimator(self, place: int) -> Estimator:
        """What stands in for a carried value."""
        found = self.rule.estimator
        whole = self.carried[place].by_token is None
        return found.otherwise if isinstance(found, TokenEstimator) and whole else found

    def places(self, cut: Partition) -> list[int]:
        """Those of what one of the cuts carries."""
        return [place for place, value in self.carried.items() if value in cut.carried]

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """The places of the carried values that are known before the decision: those of the first site."""
        regions = self.cuts[0].regions
        return tuple(p for p in self.places(self.cuts[0]) if regions.get(self.carried[p].h, Region.PROBE) in ABOVE)

    @cached_property
    def judged(self) -> tuple[int, ...]:
        """Those of them that a gate measures: where it looks at one value inside of the first block, that alone."""
        gate = self.rule.gate
        one = getattr(gate, "looks_at", "probe") == "modulated" or getattr(gate, "first_alone", False)
        return self.measured[:1] if one else self.measured

    @cached_property
    def learned(self) -> tuple[int, ...]:
        """Those of all carried values that a gate learns from."""
        of: Literal["first", "all"] | int = getattr(self.rule.gate, "learns_from", "first")
        if not isinstance(of, int):
            return tuple(self.carried) if of == "all" else self.judged[:1]
        if of >= len(self.carried):
            raise NoResultError(f"a gate learns from result {of}, and its sites give {len(self.carried)}, from 0 on")
        return (self.first + of,)

    @property
    def decision(self) -> Value:
        return Value(Kind.DECISION, str(self.number) if self.number else "")

    @property
    def reuses(self) -> Value:
        """Whether its sites are reused, for each row that decides for itself."""
        return self.decision if self.rows is None else self.step_value(STAYS)

    def own(self, name: str) -> str:
        """The slot of that name that is the rule's own."""
        return of_rule(name, self.number)

    def step_value(self, name: str) -> Value:
        """What is known of the step: but for OF_STEP each rule has its own."""
        return Value(Kind.STEP, name if name in OF_STEP else self.own(name))

    def seen(self, emitter: Emitter, place: int, role: str, now: Updates, told: Updates) -> Seen:
        """A carried value before the decision, as the gate or the estimator sees it."""
        specs = [spec for spec in self.rule.by(role).slots() if not spec.shared]
        return _in_nodes(
            *self._ends(emitter, place, role),
            {**self.slots_of(place).read(emitter, specs, now["anchors"]), **self.told(role, told)},
            {name: now[name] for name in ("index", "time", "anchors")} | {"since": now["skipped"]},
        )

    def later(self, emitter: Emitter, place: int, role: str = ESTIMATOR) -> Seen:
        """A carried value after the decision, as the estimator or the gate sees it; what is told is what P left
        behind.
        """
        anchors = emitter.state(self.own("anchors"))
        counts = {name: emitter.input(self.step_value(name)) for name in ("index", "time", "since")}
        kept = self.rule.by(role) if role == GATE else self.estimator(place)
        state = self.slots_of(place).read(emitter, kept.slots(), anchors)
        told = {name: emitter.state(self.own(f"{name}{control.NOW}")) for name in self.rule.settings()}
        x, h = self._ends(emitter, place, role)
        seen = _in_nodes(x, h, {**state, **self.told(role, told)}, {**counts, "anchors": anchors})
        if role == GATE:
            return seen
        if place not in self.measured:  # of another site than the first: its aid is not wanted before the decision
            return replace(seen, aid=emitter.trace(self.estimator(place).aid, seen))
        return replace(seen, aid=self._aid(emitter, place))

    def _ends(self, emitter: Emitter, place: int, role: str) -> tuple[fx.Node, fx.Node]:
        """X and h. An estimator to which a value is given as it is sees nothing that it could be added to."""
        carried = self.carried[place]
        if carried.form == "residual" or role != ESTIMATOR:
            return _part(emitter, carried.x), _part(emitter, carried.h)
        nothing: fx.Node = emitter.trace(torch.zeros, ())
        if carried.by_token is not None:
            return _part(emitter, carried.by_token.entry), nothing
        return nothing, _part(emitter, carried.h) if place in self.measured else nothing

    def _aid(self, emitter: Emitter, place: int) -> object:
        """The estimator's aid in a later piece."""
        aid = self.aids[place]
        nodes = tuple(emitter.input(value) for value in aid_values(place, aid))
        return nodes if isinstance(aid, tuple) else nodes[0] if nodes else None

    def told(self, role: str, told: Mapping[str, fx.Node]) -> Updates:
        """The settings of a gate or an estimator, by the names that it knows, of the values of all."""
        return {setting.name: told[setting_slot(role, setting.name)] for setting in self.rule.by(role).settings()}

    def slots_of(self, place: int) -> CarriedSlots:
        x = self.carried[place].x
        own, dtype = tensor(x).dtype, self.rule.state_dtype
        return CarriedSlots(place, x, own, dtype or own, tensor(x).device, self.number, self.rows is not None)

    @property
    def row_like(self) -> fx.Node | None:
        """What has as many rows as decide for themselves."""
        return self.cuts[0].carried[0].x if self.rows is not None else None

    @property
    def device(self) -> torch.device:
        return tensor(self.cuts[0].carried[0].x).device

    def _slots(self) -> list[Slot]:
        of_rule = (*control.rule_slots(self.rule.joint), *(guidance_slots() if self.is_guided else ()))
        of_settings = (
            ControlSlot(name + of, setting.shape, torch.float32, common=not of)
            for name, setting in self.rule.settings().items()
            for of in ("", control.NOW)
        )
        found = control.as_slots((*of_rule, *of_settings), self.device, self.number, self.row_like)
        gate = self.rule.gate
        if gate is not None and any(spec.history for spec in gate.slots()):
            raise ValueError("a gate's slot cannot have a history: `follow` writes it on every step")
        if any(spec.shared for spec in self.rule.estimator.slots()):
            raise ValueError("an estimator's slot cannot be shared: each carried value has its own")
        for spec in gate.slots() if gate is not None else ():
            for place in self.judged[:1] if spec.shared else sorted({*self.judged, *self.learned}):
                found += self.slots_of(place).slots([spec])
        specs = {place: self.estimator(place).slots() for place in self.carried}
        for spec in dict.fromkeys(itertools.chain.from_iterable(specs.values())):
            for place in self.carried:
                if spec in specs[place]:
                    found += self.slots_of(place).slots([spec])
        return found


def _part(emitter: Emitter, node: fx.Node) -> fx.Node:
    """A value of the model as traced functions take it; of one that is spread over ranks each has a part."""
    return emitter.part(emitter.split(emitter.read(node)))


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
