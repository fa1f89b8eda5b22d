"""Writes the parts of a step: what the probe's piece, the deep piece and the estimate's compute.

All functional: state is read by name and its new values are returned. `branch` makes graphs of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..plan import Inputs, Partition, Region, Slot
from ..policy import Estimator, Gate, SlotSpec
from . import control, values
from .emit import Emitter, memory_of

Updates = dict[str, fx.Node]  # the new value of each slot that is written


@dataclass(frozen=True, slots=True)
class Policy:
    """What a step decides and estimates with."""

    gate: Gate
    estimator: Estimator
    max_consecutive_skips: int | None
    state_dtype: torch.dtype | None  # None: each stream's own


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that the parts of a step are written from."""

    partition: Partition
    inputs: Inputs
    policy: Policy

    def emitter(self, inputs: Sequence[str] | None = None) -> Emitter:
        shaped_like = {f"state.{slot.name}": slot.like for slot in self.slots() if slot.like is not None}
        return Emitter(self.partition.graph_module, self.partition.autocast, inputs, shaped_like)

    def slots(self) -> tuple[Slot, ...]:
        """The tensors of a stream's state."""
        device = _tensor(self.partition.streams[0].x).device
        found = [
            Slot(slot.name, None, slot.shape, slot.dtype, device, slot.initial)
            for slot in control.control_slots(len(self.inputs.conditions))
        ]
        if any(spec.history for spec in self.policy.gate.slots()):
            raise ValueError("a gate's slot cannot have a history: `follow` writes it on every step")
        for spec in (*self.policy.gate.slots(), *self.policy.estimator.slots()):
            for place, stream in enumerate(self.partition.streams if spec.per_stream else self.partition.streams[:1]):
                dtype = torch.float32 if spec.scalar else self.policy.state_dtype or _tensor(stream.x).dtype
                like = None if spec.scalar else stream.x
                found += [Slot(name, like, (), dtype, device, 0) for name in _places(spec, place)]
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
        gate, estimator, streams = self.policy.gate, self.policy.estimator, self.partition.streams
        emitter.copy(self.partition.nodes(Region.PROLOGUE, Region.PROBE))
        old = {slot.name: emitter.input(f"state.{slot.name}") for slot in self._control()}
        checksums = [emitter.trace(control.checksum, emitter.read(node)) for node in self.inputs.conditions]
        sums = emitter.trace(torch.stack, checksums) if checksums else old["checksums"]
        timestep = self.inputs.timestep
        time = old["clock"] if timestep is None else emitter.read(timestep)
        fresh, now = emitter.trace(control.begin, time, sums, old)

        shared = self._shared(emitter, fresh)
        carried = [(emitter.read(stream.x), emitter.read(stream.h)) for stream in streams]
        anchors = now["anchors"]
        kept = [self._of_stream(emitter, gate, place, anchors) for place in range(len(streams))]
        errors = [emitter.trace(gate.measure, x, h, state) for (x, h), state in zip(carried, kept, strict=True)]
        error, first = emitter.trace(_largest_error, errors, now["index"])
        within, compared = emitter.trace(gate.judge, error, shared)
        limit = self.policy.max_consecutive_skips
        forced, reuse = emitter.trace(
            _decide, within, now, old["schedule"], control.NO_LIMIT if limit is None else limit
        )
        gammas = [
            emitter.trace(estimator.weigh, x, h, anchors, self._of_stream(emitter, estimator, place, anchors))
            for place, (x, h) in enumerate(carried)
        ]

        updates: Updates = dict(now)
        updates |= emitter.trace(control.finish, now, reuse)
        row = emitter.trace(_columns, now, reuse, forced, first, error, compared, gammas[0])
        updates |= emitter.trace(control.record, row, old)
        updates |= emitter.trace(gate.settle, compared, reuse, shared)
        for place, ((x, h), state) in enumerate(zip(carried, kept, strict=True)):
            updates |= {
                f"{name}.{place}": node for name, node in emitter.trace(gate.follow, x, h, reuse, state).items()
            }
        return reuse, gammas, updates

    def deep(self, emitter: Emitter) -> tuple[list[object], Updates]:
        """Deep blocks, new anchor and epilogue: (the model's outputs, updates)."""
        emitter.copy(self.partition.nodes(Region.DEEP))
        # Before the epilogue, which may write to y.
        estimator, anchors = self.policy.estimator, emitter.input("state.anchors")
        updates: Updates = {"anchors": emitter.trace(_one_more, anchors)}
        for place, stream in enumerate(self.partition.streams):
            nodes = [emitter.read(node) for node in (stream.x, stream.h, stream.y)]
            state = self._of_stream(emitter, estimator, place, anchors)
            new = emitter.trace(estimator.anchor, *nodes, state)
            for name, value in new.items():
                if memory_of(value) in nodes:  # the epilogue may write to it
                    new[name] = emitter.graph.call_method("clone", (value,))
            for spec in estimator.slots():
                updates |= self._anchored(emitter, spec, place, anchors, new[spec.name])
        return self._epilogue(emitter), updates

    def estimate(self, emitter: Emitter) -> list[object]:
        """The deep blocks' stand-in and the epilogue: the model's outputs."""
        for place, stream in enumerate(self.partition.streams):
            gamma, anchors = emitter.input(f"gamma.{place}"), emitter.input("state.anchors")
            state = self._of_stream(emitter, self.policy.estimator, place, anchors)
            y = emitter.trace(self.policy.estimator.estimate, emitter.read(stream.x), gamma, anchors, state)
            if memory_of(y).op == "placeholder":  # the model's caller must not get hold of the state
                y = emitter.graph.call_method("clone", (y,))
            emitter.replace(stream.y, emitter.graph.call_method("to", (y, _tensor(stream.y).dtype)))
        return self._epilogue(emitter)

    def _epilogue(self, emitter: Emitter) -> list[object]:
        emitter.copy(self.partition.nodes(Region.EPILOGUE))
        return [emitter.read(node) if isinstance(node, fx.Node) else node for node in self.outputs()]

    def _control(self) -> tuple[control.ControlSlot, ...]:
        return control.control_slots(len(self.inputs.conditions))

    def _shared(self, emitter: Emitter, fresh: fx.Node) -> Updates:
        """The gate's slots that are not per stream, back at 0 where a generation starts."""
        specs = [spec for spec in self.policy.gate.slots() if not spec.per_stream]
        return {spec.name: emitter.trace(_zero_if, fresh, emitter.input(f"state.{spec.name}")) for spec in specs}

    @staticmethod
    def _of_stream(emitter: Emitter, policy: Gate | Estimator, place: int, anchors: fx.Node) -> Updates:
        """A stream's slots as the policy reads them, after that many anchors."""
        found: Updates = {}
        for spec in policy.slots():
            if spec.per_stream:
                ring = [emitter.input(f"state.{name}") for name in _places(spec, place)]
                for age, name in enumerate(spec.reads):
                    found[name] = emitter.trace(_pick, anchors, age, ring)
        return found

    @staticmethod
    def _anchored(emitter: Emitter, spec: SlotSpec, place: int, anchors: fx.Node, new: fx.Node) -> Updates:
        """What a stream's slot becomes with a new anchor, after that many before."""
        names = _places(spec, place)
        if len(names) == 1:
            return {names[0]: new}
        ring = [emitter.input(f"state.{name}") for name in names]
        return {name: emitter.trace(_put, anchors, turn, ring, new) for turn, name in enumerate(names)}


def _tensor(node: fx.Node) -> Tensor:
    recorded = values.tensor(node)
    assert recorded is not None
    return recorded


def _places(spec: SlotSpec, place: int) -> tuple[str, ...]:
    """The slots of one stream (or of all, for what is not per stream) that hold `spec`: "r.0.0" and "r.0.1"."""
    name = f"{spec.name}.{place}" if spec.per_stream else spec.name
    return tuple(f"{name}.{turn}" for turn in range(spec.history)) if spec.history > 1 else (name,)


# Traced into the graph, like the functions of `control`:


def _zero_if(fresh: Tensor, state: Tensor) -> Tensor:
    return torch.where(fresh, torch.zeros_like(state), state)


def _largest_error(errors: list[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """(the step's error, whether there is none because a generation starts). NaN in any stream stays NaN."""
    largest = errors[0]
    for error in errors[1:]:
        largest = torch.maximum(largest, error)
    first = index == 0
    return torch.where(first, torch.zeros_like(largest), largest), first


def _decide(within: Tensor, now: Mapping[str, Tensor], schedule: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    forced = control.forced(now, schedule)
    return forced, ~forced & within & (now["skipped"] < limit)


def _one_more(anchors: Tensor) -> Tensor:
    return anchors + 1


def _pick(anchors: Tensor, age: int, ring: list[Tensor]) -> Tensor:
    """The value of the `age`-th newest anchor; masked, so that a place that was never written does no harm."""
    picked = ring[0]
    for turn in range(1, len(ring)):
        picked = torch.where((anchors - 1 - age) % len(ring) == turn, ring[turn], picked)
    return picked


def _put(anchors: Tensor, turn: int, ring: list[Tensor], new: Tensor) -> Tensor:
    """One place of the ring with a new anchor: the new value if it is its turn, else what it holds."""
    return torch.where(anchors % len(ring) == turn, new.type_as(ring[turn]), ring[turn])


def _columns(
    now: Mapping[str, Tensor],
    reuse: Tensor,
    forced: Tensor,
    first: Tensor,
    error: Tensor,
    compared: Tensor,
    gamma: Tensor,
) -> tuple[Tensor, ...]:
    """The values of `control.LOG_COLUMNS`; NaN where a step has none."""
    nothing = torch.full_like(error, float("nan"))
    return (
        now["index"],
        now["time"],
        ~reuse,
        forced,
        torch.where(first, nothing, error),
        torch.where(first, nothing, compared),
        torch.where(reuse, gamma, nothing),
    )
