"""Writes the parts of a step: what the probe's piece, the deep piece and the estimate's compute.

All functional: state is read by name and its new values are returned. `branch` makes graphs of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..plan import Inputs, Partition, Region, Slot
from ..policy import ESTIMATOR, GATE, FollowingEstimator, setting_slot, settings_of
from . import control, strides, values
from .emit import Emitter, memory_of
from .measure import Policy, Told, measure, stand_in
from .slots import StreamSlots, Updates, check_names
from .trial import try_policy


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that the parts of a step are written from."""

    partition: Partition
    inputs: Inputs
    policy: Policy

    def emitter(self, inputs: Sequence[str] | None = None) -> Emitter:
        shaped_like = {f"state.{slot.name}": slot.like for slot in self.slots() if slot.like is not None}
        device = _tensor(self.partition.streams[0].x).device
        return Emitter(self.partition.graph_module, self.partition.autocast, inputs, shaped_like, device)

    def try_policy(self) -> None:
        """Raises TypeError or ValueError where a method of the gate or the estimator gives what it may not."""
        gate, estimator = self.policy.gate, self.policy.estimator
        shown = [
            self._slots(place).shown((stream.x, stream.h, stream.y), (*gate.slots(), *estimator.slots()))
            for place, stream in enumerate(self.partition.streams)
        ]
        try_policy(gate, estimator, shown, _tensor(self.partition.streams[0].x).device)

    def slots(self) -> tuple[Slot, ...]:
        """The tensors of a stream's state."""
        device = _tensor(self.partition.streams[0].x).device
        found = [Slot(slot.name, None, slot.shape, slot.dtype, device, slot.initial) for slot in self._control()]
        timestep = self.inputs.timestep
        shaped = timestep if timestep is not None and values.tensor(timestep) is not None else None
        found.append(Slot(control.TIMES, shaped, (), torch.float32, device, math.nan))
        for name, shape in self._settings().items():
            found += [Slot(slot, None, shape, torch.float32, device, 0) for slot in (name, name + control.NOW)]
        if any(spec.history for spec in self.policy.gate.slots()):
            raise ValueError("a gate's slot cannot have a history: `follow` writes it on every step")
        for spec in (*self.policy.gate.slots(), *self.policy.estimator.slots()):
            for place in range(len(self.partition.streams) if spec.per_stream else 1):
                found += self._slots(place).slots([spec])
        names = [slot.name for slot in found]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two slots are named {name!r}: the gate and the estimator need names of their own")
        return tuple(found)

    def outputs(self) -> tuple[object, ...]:
        """What the model's graph returns."""
        returned = next(iter(reversed(self.partition.graph_module.graph.nodes))).args[0]
        assert isinstance(returned, (tuple, list))
        return tuple(returned)

    def probe(self, emitter: Emitter) -> tuple[fx.Node, list[fx.Node], Updates]:
        """Prologue, probe and decision: (reuse, gamma of each stream, updates)."""
        gate, streams = self.policy.gate, self.partition.streams
        emitter.copy(self.partition.nodes(Region.PROLOGUE, Region.PROBE))
        old = {slot.name: emitter.input(f"state.{slot.name}") for slot in self._control()}
        old[control.TIMES] = emitter.input(f"state.{control.TIMES}")
        timestep = self.inputs.timestep
        time = old["clock"] if timestep is None else emitter.read(timestep)
        fresh, anew, now = emitter.trace(control.begin, time, *self._checksums(emitter, old), old)

        in_force = {
            name: emitter.trace(
                control.in_force, fresh, *(emitter.input(f"state.{name}{at}") for at in ("", control.NOW))
            )
            for name in (*(slot.name for slot in control.TOLD), *self._settings())
        }
        told = Told(self._told(GATE, in_force), self._told(ESTIMATOR, in_force))
        shared = self._shared(emitter, anew) | told.gate
        carried = [(emitter.read(stream.x), emitter.read(stream.h)) for stream in streams]
        anchors = now["anchors"]
        measured = [
            measure(emitter, self.policy, told, self._slots(place), x, h, anchors)
            for place, (x, h) in enumerate(carried)
        ]
        error, first = emitter.trace(_largest_error, [stream.error for stream in measured], anchors)
        within, compared = emitter.trace(gate.judge, error, shared)
        forced = emitter.trace(control.forced, now, in_force[control.SCHEDULE], in_force[control.DEEP_STEPS])
        may = emitter.trace(control.may_reuse, forced, now["skipped"], in_force[control.SCHEDULE])
        if self.policy.joint:
            reuse, together = emitter.trace(control.decide_together, now, old, may, within, error)
        else:
            reuse, together = emitter.trace(torch.logical_and, may, within), {}
        gammas = [stream.gamma for stream in measured]

        updates: Updates = {**now, **together, **{name + control.NOW: node for name, node in in_force.items()}}
        updates |= emitter.trace(control.finish, now, reuse)
        row = emitter.trace(control.columns, now, reuse, forced, first, error, compared, gammas[0])
        updates |= emitter.trace(control.record, row, old)
        settled = emitter.trace(gate.settle, compared, reuse, shared)
        check_names(gate.settle, settled, [spec.name for spec in gate.slots() if not spec.per_stream])
        updates |= settled
        for place, ((x, h), stream) in enumerate(zip(carried, measured, strict=True)):
            new = emitter.trace(gate.follow, x, h, reuse, stream.kept)
            check_names(gate.follow, new, [spec.name for spec in gate.slots()])
            for spec in gate.slots():
                if spec.name in new:
                    updates |= self._slots(place).write(emitter, spec, new[spec.name], anchors)
            updates |= self._counted(emitter, place, told.estimator, stream.gamma, reuse, anchors)
        return reuse, gammas, updates

    def deep(self, emitter: Emitter) -> tuple[list[object], Updates]:
        """Deep blocks, new anchor and epilogue: (the model's outputs, updates)."""
        emitter.copy(self.partition.nodes(Region.DEEP))
        # Before the epilogue, which may write to y.
        estimator, anchors = self.policy.estimator, emitter.input("state.anchors")
        told = self._told(ESTIMATOR, self._running(emitter))
        updates: Updates = {"anchors": emitter.trace(_one_more, anchors)}
        for place, stream in enumerate(self.partition.streams):
            nodes = [emitter.read(node) for node in (stream.x, stream.h, stream.y)]
            state = self._slots(place).read(emitter, estimator.slots(), anchors) | told
            new = emitter.trace(estimator.anchor, *nodes, state)
            check_names(estimator.anchor, new, [spec.name for spec in estimator.slots()], all_of_them=True)
            for name, value in new.items():
                if memory_of(value) in nodes:  # the epilogue may write to it
                    new[name] = emitter.graph.call_method("clone", (value,))
            for spec in estimator.slots():
                updates |= self._slots(place).write(emitter, spec, new[spec.name], anchors)
        return self._epilogue(emitter), updates

    def estimate(self, emitter: Emitter) -> list[object]:
        """The deep blocks' stand-in and the epilogue: the model's outputs."""
        for place, stream in enumerate(self.partition.streams):
            gamma, anchors = emitter.input(f"gamma.{place}"), emitter.input("state.anchors")
            told, slots, x = self._told(ESTIMATOR, self._running(emitter)), self._slots(place), emitter.read(stream.x)
            y = stand_in(emitter, self.policy, told, slots, x, gamma, anchors)
            if memory_of(y).op == "placeholder":  # the model's caller must not get hold of the state
                y = emitter.graph.call_method("clone", (y,))
            y = emitter.graph.call_method("to", (y, _tensor(stream.y).dtype))
            if (order := strides.order_of(_tensor(stream.y), _tensor(stream.x))) is not None:
                y = emitter.trace(strides.laid_out, y, order)
            emitter.replace(stream.y, y)
        return self._epilogue(emitter)

    def _epilogue(self, emitter: Emitter) -> list[object]:
        emitter.copy(self.partition.nodes(Region.EPILOGUE))
        return [emitter.read(node) if isinstance(node, fx.Node) else node for node in self.outputs()]

    def _counted(
        self, emitter: Emitter, place: int, told: Updates, gamma: fx.Node, reuse: fx.Node, anchors: fx.Node
    ) -> Updates:
        """What one stream's estimator counts on every step."""
        estimator, slots = self.policy.estimator, self._slots(place)
        if not isinstance(estimator, FollowingEstimator):
            return {}
        scalars = [spec for spec in estimator.slots() if spec.scalar]
        new = emitter.trace(estimator.follow, gamma, reuse, anchors, slots.read(emitter, scalars, anchors) | told)
        check_names(estimator.follow, new, [spec.name for spec in scalars], "slots that are scalars")
        updates: Updates = {}
        for spec in scalars:
            if spec.name in new:
                updates |= slots.write(emitter, spec, new[spec.name], anchors)
        return updates

    def _checksums(self, emitter: Emitter, old: Updates) -> tuple[fx.Node, fx.Node]:
        """(the conditions' checksums, their sizes, against which a change of those counts)."""
        if not self.inputs.conditions:
            return old["checksums"], old["checksums"]
        sums, sizes = [], []
        for node in self.inputs.conditions:
            condition = emitter.read(node)
            sums.append(emitter.trace(control.checksum, condition))
            of = control.size if _tensor(node).is_floating_point() else control.nothing
            sizes.append(emitter.trace(of, condition))
        return emitter.trace(torch.stack, sums), emitter.trace(torch.stack, sizes)

    def _control(self) -> tuple[control.ControlSlot, ...]:
        return control.control_slots(len(self.inputs.conditions), self.policy.joint)

    def _settings(self) -> dict[str, tuple[int, ...]]:
        """The slots of the gate's and the estimator's settings, with their shapes."""
        roles = ((GATE, self.policy.gate), (ESTIMATOR, self.policy.estimator))
        return {setting_slot(role, s.name): s.shape for role, policy in roles for s in settings_of(policy)}

    def _told(self, role: str, values: Mapping[str, fx.Node]) -> Updates:
        """The settings of a gate or an estimator, by the names that it knows, of the values of all."""
        policy = self.policy.gate if role == GATE else self.policy.estimator
        return {setting.name: values[setting_slot(role, setting.name)] for setting in settings_of(policy)}

    def _running(self, emitter: Emitter) -> Updates:
        """What the running generation goes by, as the probe's part left it."""
        return {name: emitter.input(f"state.{name}{control.NOW}") for name in self._settings()}

    def _shared(self, emitter: Emitter, anew: fx.Node) -> Updates:
        """The gate's slots that are not per stream, back at 0 where no anchor serves."""
        specs = [spec for spec in self.policy.gate.slots() if not spec.per_stream]
        return {spec.name: emitter.trace(_zero_if, anew, emitter.input(f"state.{spec.name}")) for spec in specs}

    def _slots(self, place: int) -> StreamSlots:
        x = self.partition.streams[place].x
        carried = _tensor(x)
        return StreamSlots(place, x, carried.dtype, self.policy.state_dtype or carried.dtype, carried.device)


def _tensor(node: fx.Node) -> Tensor:
    recorded = values.tensor(node)
    assert recorded is not None
    return recorded


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


def _one_more(anchors: Tensor) -> Tensor:
    return anchors + 1
