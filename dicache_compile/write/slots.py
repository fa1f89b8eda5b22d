"""The slots of a gate or an estimator in a graph: how they are named, read and written.

A history is a ring of as many slots: the newest of n anchors is in the place (n - 1) % history. State in float8 has one
float32 scale for each row, in a slot beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import values
from ..kernels.float8 import FLOAT8, scaled, value
from ..program import Slot, of_rule
from ..rules import PARTNER, SlotSpec
from .emit import Emitter
from .trial import Shown, method_name

UNKNOWN = 3  # a size that is not known

# By slot: what it holds, or will. These are nodes, which stand for tensors while methods are traced.
Updates = dict[str, Any]
_Put = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class CarriedSlots:
    """The slots of one carried value (or those of all, for what is shared)."""

    place: int  # of the carried value
    like: fx.Node  # has the shape of the tensors
    own: torch.dtype  # of the carried value
    dtype: torch.dtype  # in which its tensors are kept, but for those that float8 is too coarse for
    device: torch.device
    rule: int = 0
    by_rows: bool = False  # whether each row of a batch has numbers of its own

    def slots(self, specs: Sequence[SlotSpec]) -> list[Slot]:
        """All that these specs need."""
        found = []
        for spec in specs:
            for name in self.names(spec):
                if spec.like == "number":
                    like = self.like if self.by_rows else None
                    found.append(Slot(name, like, spec.shape, torch.float32, self.device, 0, of_rows=self.by_rows))
                    continue
                if spec.like == "tokens":
                    found.append(Slot(name, self.like, (), torch.float32, self.device, 0, by_token=True))
                    continue
                of_request = spec.name == PARTNER
                found.append(Slot(name, self.like, (), self._dtype(spec), self.device, 0, of_request=of_request))
                if self._is_scaled(spec):
                    found.append(Slot(_scale(name), self.like, (), torch.float32, self.device, 0, by_token=True))
        return found

    def shown(self, nodes: tuple[fx.Node, fx.Node, fx.Node], specs: Sequence[SlotSpec]) -> Shown:
        """The carried value as methods with these slots see it; `nodes` are its x, h and y."""
        x, h, y = (recorded for node in nodes if (recorded := values.tensor(node)) is not None)
        kept = {spec.name: torch.float32 if self._is_scaled(spec) else self._dtype(spec) for spec in specs}
        # Any size does where only running tells it, but for 1, which another is broadcast to.
        shape = tuple(values.hint(size) or UNKNOWN for size in x.shape)
        shape = (1, *shape[1:]) if self.by_rows else shape
        return Shown(shape, (x.dtype, h.dtype, y.dtype), kept)

    def names(self, spec: SlotSpec) -> tuple[str, ...]:
        """The slots that hold `spec`, by place of its ring: "r.0.0" and "r.0.1"."""
        name = of_rule(spec.name, self.rule) if spec.shared else f"{spec.name}.{self.place}"
        return tuple(f"{name}.{turn}" for turn in range(spec.history)) if spec.history > 1 else (name,)

    def stored(self, emitter: Emitter, spec: SlotSpec) -> tuple[list[fx.Node], list[fx.Node]]:
        """(what is stored in each place of a spec's ring, the scales of it where there are any)."""
        names = self.names(spec)
        scales = [split(emitter, spec, _scale(name)) for name in names] if self._is_scaled(spec) else []
        return [split(emitter, spec, name) for name in names], scales

    def read(self, emitter: Emitter, specs: Sequence[SlotSpec], anchors: fx.Node) -> Updates:
        """The values of specs as a gate or an estimator reads them ("r1", "r2"), after that many anchors."""
        found: Updates = {}
        for spec in specs:
            ring, scales = self.stored(emitter, spec)
            if scales:
                ring = [emitter.trace(value, stored, scale) for stored, scale in zip(ring, scales, strict=True)]
            for age, name in enumerate(spec.reads):
                found[name] = emitter.trace(_pick, anchors, age, ring)
        return found

    def write(self, emitter: Emitter, spec: SlotSpec, new: fx.Node, anchors: Any) -> Updates:
        """What a spec's slots become with a new value, after that many anchors before it."""
        names = self.names(spec)
        if emitter.agreeing is not None and spec.like == "number":
            new = emitter.agreeing.same(new)
        stored, scales = self.stored(emitter, spec)
        if not scales:
            updates = self._turned(emitter, names, stored, new, anchors, _put)
        else:
            bits, scale = emitter.trace(scaled, new, self.dtype)
            updates = self._turned_bytes(emitter, names, stored, bits, anchors)
            updates |= self._turned(emitter, [_scale(name) for name in names], scales, scale, anchors, _put)
        return {name: join(emitter, spec, value) for name, value in updates.items()}

    @staticmethod
    def _turned(
        emitter: Emitter, names: Sequence[str], ring: list[fx.Node], new: fx.Node, anchors: fx.Node, put: _Put
    ) -> Updates:
        if len(names) == 1:
            return {names[0]: new}
        return {name: emitter.trace(put, anchors, turn, ring, new) for turn, name in enumerate(names)}

    def _turned_bytes(
        self, emitter: Emitter, names: Sequence[str], ring: list[fx.Node], new: fx.Node, anchors: fx.Node
    ) -> Updates:
        if not self.by_rows or len(names) == 1:
            return self._turned(emitter, names, ring, new, anchors, _put_bytes)
        # All rows at once: `torch.vmap` takes no bytes of one before torch 2.13.
        turns = [emitter.trace(_is_turn, anchors, turn, len(ring)) for turn in range(len(names))]
        return {name: emitter.choose(turns[turn], new, ring[turn]) for turn, name in enumerate(names)}

    def _dtype(self, spec: SlotSpec) -> torch.dtype:
        return self.own if spec.measured and self.dtype in FLOAT8 else self.dtype

    def _is_scaled(self, spec: SlotSpec) -> bool:
        return spec.like == "carried" and self._dtype(spec) in FLOAT8


def split(emitter: Emitter, spec: SlotSpec, name: str) -> fx.Node:
    """A slot of that name as methods see what `spec` describes."""
    node = emitter.state(name)
    return node if spec.like == "number" else emitter.part(emitter.split(node))


def join(emitter: Emitter, spec: SlotSpec, new: fx.Node) -> fx.Node:
    """What methods give for it as the slot holds it."""
    return new if spec.like == "number" else emitter.join(new)


def check_names(
    method: Callable[..., object],
    given: Mapping[str, object],
    own: Sequence[str],
    what: str = "slots of its own",
    all_of_them: bool = False,
) -> None:
    """Raises ValueError where a method gives other slots than it may, or not all that it must."""
    if others := given.keys() - set(own):
        expected = ", ".join(own) or "none"
        raise ValueError(
            f"{method_name(method)} may return {what}, got {', '.join(sorted(others))}: expected {expected}"
        )
    if all_of_them and (missing := set(own) - given.keys()):
        raise ValueError(
            f"{method_name(method)} must return all of its slots, and {', '.join(sorted(missing))} is missing"
        )


def _scale(name: str) -> str:
    return f"{name}.scale"


# Traced into the graph:


def _pick(anchors: Tensor, age: int, ring: list[Tensor]) -> Tensor:
    """The value of the `age`-th newest anchor; masked, so that a place that was never written does no harm."""
    picked = ring[0]
    for turn in range(1, len(ring)):
        picked = torch.where((anchors - 1 - age) % len(ring) == turn, ring[turn], picked)
    return picked


def _put(anchors: Tensor, turn: int, ring: list[Tensor], new: Tensor) -> Tensor:
    """One place of the ring with a new anchor: the new value if it is its turn, else what it holds."""
    return torch.where(anchors % len(ring) == turn, new.type_as(ring[turn]), ring[turn])


def _is_turn(anchors: Tensor, turn: int, places: int) -> Tensor:
    return anchors % places == turn


def _put_bytes(anchors: Tensor, turn: int, ring: list[Tensor], new: Tensor) -> Tensor:
    """The same for float8, of which PyTorch selects nothing but the bytes."""
    chosen = torch.where(anchors % len(ring) == turn, new.view(torch.uint8), ring[turn].view(torch.uint8))
    return chosen.view(new.dtype)
