"""How the branch is taken at run time. An engine runs one step of one stream; a new one is one more class here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from ..lowering import Lowering
from ..plan import Branch, Piece
from .state import StreamState

Pick = Callable[[Sequence[Any]], Sequence[Any]]
Run = Callable[[Sequence[Any]], Sequence[Any]]


class Engine(Protocol):
    """Runs a step. Built once for a graph; what belongs to one stream comes with each call."""

    @property
    def name(self) -> str:
        """How the last step took its branch, or the next one will."""
        ...

    @property
    def reason(self) -> str | None:
        """Why not in the way that the config or the device would have it; None where it is that way."""
        ...

    def step(self, inputs: Sequence[Any], state: StreamState) -> Sequence[Any]:
        """The model's outputs for its inputs (in the order of its placeholders); updates `state`."""
        ...


@dataclass(frozen=True, slots=True)
class Pieces:
    """The lowered pieces. Each takes everything that is known when it runs, and picks its own from that."""

    probe: Run  # of the model's inputs and the state: the decision, then the crossing values
    deep: Run  # of these and the crossing values: the model's outputs
    estimate: Run  # likewise


@dataclass(frozen=True, slots=True)
class CallsEngine:
    """P, then a look at its decision, then D or R. On CUDA the look waits for the device."""

    pieces: Pieces
    reason: str | None = None

    @property
    def name(self) -> str:
        return "calls"

    def step(self, inputs: Sequence[Any], state: StreamState) -> Sequence[Any]:
        known = (*inputs, *state.values)
        reuse, *crossing = self.pieces.probe(known)
        known = (*known, *crossing)
        return self.pieces.estimate(known) if bool(reuse) else self.pieces.deep(known)


@dataclass(frozen=True, slots=True)
class CondEngine:
    """The single graph with its `cond`; the new state is copied over the old."""

    single: Run
    outputs: int  # how many of the single graph's outputs are the model's
    written: tuple[int, ...]  # which slots the rest are
    reason: None = None

    @property
    def name(self) -> str:
        return "cond"

    def step(self, inputs: Sequence[Any], state: StreamState) -> Sequence[Any]:
        results = self.single((*inputs, *state.values))
        for slot, new in zip(self.written, results[self.outputs :], strict=True):
            state.values[slot].copy_(new)
        return results[: self.outputs]


def lower_pieces(branch: Branch, placeholders: Sequence[str], lower: Lowering) -> Pieces:
    """Lowers P, D and R. `placeholders` are the names of the model's inputs, in order."""
    names = [*placeholders, *(f"state.{slot.name}" for slot in branch.slots)]
    crossing = [*names, *branch.probe.outputs[1:]]
    return Pieces(
        probe=_picking(branch.probe, names, lower),
        deep=_picking(branch.deep, crossing, lower),
        estimate=_picking(branch.estimate, crossing, lower),
    )


def cond_engine(branch: Branch, placeholders: Sequence[str], lower: Lowering) -> CondEngine:
    """Lowers the single graph."""
    slots = [f"state.{slot.name}" for slot in branch.slots]
    written = [name for name in branch.single.outputs if name.startswith("state.")]
    return CondEngine(
        single=_picking(branch.single, [*placeholders, *slots], lower),
        outputs=len(branch.single.outputs) - len(written),
        written=tuple(slots.index(name) for name in written),
    )


def _picking(piece: Piece, names: Sequence[str], lower: Lowering) -> Run:
    """A lowered piece that takes the values of all these names."""
    pick, run = _picker(piece, names), lower(piece)
    return lambda known: run(*pick(known))


def _picker(piece: Piece, names: Sequence[str]) -> Pick:
    places = {name: place for place, name in enumerate(names)}
    chosen = [places[name] for name in piece.inputs]
    # itemgetter gives a bare item for one place
    return itemgetter(*chosen) if len(chosen) > 1 else lambda known: tuple(known[place] for place in chosen)
