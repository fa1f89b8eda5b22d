"""How the branch is taken at run time. An engine runs one step of one stream; a new one is one more class here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ..lowering import Lowering
from ..plan import Branch, Piece

Pick = Callable[[Sequence[Any]], Sequence[Any]]


class Engine(Protocol):
    """Runs a step. Built once for a graph, and free of state: that comes with each call."""

    name: ClassVar[str]

    def step(self, inputs: Sequence[Any], state: Sequence[Tensor]) -> Sequence[Any]:
        """The model's outputs for its inputs (in the order of its placeholders); updates `state` (in slot order)."""
        ...


@dataclass(frozen=True, slots=True)
class CallsEngine:
    """P, then a look at its decision, then D or R. On CUDA the look waits for the device."""

    name: ClassVar[str] = "calls"
    probe: Callable[..., Sequence[Any]]
    deep: Callable[..., Sequence[Any]]
    estimate: Callable[..., Sequence[Any]]
    pick_probe: Pick
    pick_deep: Pick
    pick_estimate: Pick

    def step(self, inputs: Sequence[Any], state: Sequence[Tensor]) -> Sequence[Any]:
        known = (*inputs, *state)
        reuse, *crossing = self.probe(*self.pick_probe(known))
        known = (*known, *crossing)
        if bool(reuse):
            return self.estimate(*self.pick_estimate(known))
        return self.deep(*self.pick_deep(known))


@dataclass(frozen=True, slots=True)
class CondEngine:
    """The single graph with its `cond`; the new state is copied over the old."""

    name: ClassVar[str] = "cond"
    single: Callable[..., Sequence[Any]]
    pick: Pick
    outputs: int  # how many of the single graph's outputs are the model's
    written: tuple[int, ...]  # which slots the rest are

    def step(self, inputs: Sequence[Any], state: Sequence[Tensor]) -> Sequence[Any]:
        results = self.single(*self.pick((*inputs, *state)))
        for slot, new in zip(self.written, results[self.outputs :], strict=True):
            state[slot].copy_(new)
        return results[: self.outputs]


def calls_engine(branch: Branch, placeholders: Sequence[str], lower: Lowering) -> CallsEngine:
    """Lowers the three pieces. `placeholders` are the names of the model's inputs, in order."""
    names = [*placeholders, *(f"state.{slot.name}" for slot in branch.slots)]
    crossing = [*names, *branch.probe.outputs[1:]]
    return CallsEngine(
        probe=lower(branch.probe),
        deep=lower(branch.deep),
        estimate=lower(branch.estimate),
        pick_probe=_picker(branch.probe, names),
        pick_deep=_picker(branch.deep, crossing),
        pick_estimate=_picker(branch.estimate, crossing),
    )


def cond_engine(branch: Branch, placeholders: Sequence[str], lower: Lowering) -> CondEngine:
    """Lowers the single graph."""
    slots = [f"state.{slot.name}" for slot in branch.slots]
    written = [name for name in branch.single.outputs if name.startswith("state.")]
    return CondEngine(
        single=lower(branch.single),
        pick=_picker(branch.single, [*placeholders, *slots]),
        outputs=len(branch.single.outputs) - len(written),
        written=tuple(slots.index(name) for name in written),
    )


def _picker(piece: Piece, names: Sequence[str]) -> Pick:
    places = {name: place for place, name in enumerate(names)}
    chosen = [places[name] for name in piece.inputs]
    # itemgetter gives a bare item for one place
    return itemgetter(*chosen) if len(chosen) > 1 else lambda known: tuple(known[place] for place in chosen)
