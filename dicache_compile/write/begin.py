"""Writes what begins a step, before any rule is asked: whether a generation starts, which step it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..program import Kind, Value
from . import control, starts
from .emit import Emitter
from .parts import tensor
from .slots import Updates
from .whole import Whole


@dataclass(frozen=True, slots=True)
class Start:
    """What is found of a step before it is decided whether a generation starts with it."""

    old: Updates  # the step's slots
    found: Updates  # "fresh" and "anew" among them, as this rank finds them


def step_start(whole: Whole, emitter: Emitter) -> Start:
    """What a step's timestep, its conditions and the host tell."""
    slots = control.step_slots(len(whole.inputs.conditions), 0)
    old = {slot.name: emitter.state(slot.name) for slot in slots}
    old[control.TIMES] = emitter.state(control.TIMES)
    timestep = whole.inputs.timestep
    time = old[control.CLOCK] if timestep is None else of_step(whole, emitter, timestep)
    return Start(old, emitter.trace(starts.begin, time, *_checksums(whole, emitter, old), old))


def step_begun(whole: Whole, emitter: Emitter, start: Start, fresh: fx.Node, anew: fx.Node) -> tuple[Updates, Updates]:
    """(the step's index and time, the step's slots after it) where a generation starts with it or not."""
    begun = emitter.trace(starts.begun, fresh, start.found, start.old)
    now = {name: begun[name] for name in ("index", "time")}
    known = {**now, "fresh": fresh, "anew": anew}
    if len(whole.parts) > 1:
        # Another rule finds the slot with this step's timestep.
        known["last_time"] = emitter.trace(torch.clone, start.old["time"])
    for name, node in known.items():
        emitter.offer(Value(Kind.STEP, name), node)
    return now, {**begun, "index": emitter.trace(control.next_index, now["index"])}


def of_step(whole: Whole, emitter: Emitter, timestep: fx.Node) -> fx.Node:
    """The timestep, as functions take it."""
    time = emitter.read(timestep)
    return emitter.by_row(time) if whole.rows is not None and whole.rows.have(timestep) else time


def _checksums(whole: Whole, emitter: Emitter, old: Updates) -> tuple[fx.Node, fx.Node]:
    """(the conditions' checksums, their sizes, against which a change of those counts)."""
    if not whole.inputs.conditions:
        return old["checksums"], old["checksums"]
    sums, sizes = [], []
    for node in whole.inputs.conditions:
        condition = emitter.read(node)
        if whole.rows is not None and whole.rows.have(node):
            condition = emitter.split(condition)
        sums.append(emitter.trace(control.checksum, condition))
        of = control.size if tensor(node).is_floating_point() else control.nothing
        sizes.append(emitter.trace(of, condition))
    return emitter.trace(torch.stack, sums), emitter.trace(torch.stack, sizes)
