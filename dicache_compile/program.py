"""What runs on a step: pieces, choices between them, and the values that go from one to the next.

    Run(P)
    Choose(decision, deep: Run(D), reused: Run(R))
    Run(E)

A program is frozen. `write` makes it of a graph and a rule, `lowering` compiles its pieces, and an engine runs it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import fx


class Kind(enum.Enum):
    """What a value is."""

    INPUT = "input"  # an input of the model's graph
    STATE = "state"  # a slot of the stream's state, which pieces write in place
    CROSSING = "crossing"  # what the model's graph computes in one piece and reads in another
    DECISION = "decision"  # whether the sites of a rule are reused: bool, shape ()
    AID = "aid"  # what an estimator takes from before the decision
    STEP = "step"  # what is known of the step: "index", "time", "since", "fresh", "anew", "mark", "met"
    OUTPUT = "output"  # what the model's graph returns


@dataclass(frozen=True, slots=True)
class Value:
    """What one piece gives and another one reads."""

    kind: Kind
    name: str = ""  # of a node of the model's graph, of a slot, or of one of several

    def __str__(self) -> str:
        """A name for people, and for placeholders: 'state.r.0'; those of the model's own nodes are as there."""
        if self.kind in (Kind.INPUT, Kind.CROSSING):
            return self.name
        return f"{self.kind.value}.{self.name}" if self.name else self.kind.value


DECISION = Value(Kind.DECISION)  # of the first rule
BLOCK = "dicache_block"  # in the metadata of a piece's node: the place of its block in the trunk


_RULE = ".rule"


def of_rule(name: str, rule: int) -> str:
    """What a slot is called that each rule has of its own: that of the first one has the plain name."""
    return f"{name}{_RULE}{rule}" if rule else name


def of_rules(name: str, known: Iterable[str]) -> list[str]:
    """The slots of that name of all rules that have one, of those that are known."""
    return [own for own in known if own.partition(_RULE)[0] == name]


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a stream's state."""

    name: str  # "index", or "r.0.1" for the second place of the first carried value's residuals
    like: fx.Node | None  # the node whose shape it has; None: the fixed `shape`
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    initial: float
    by_token: bool = False  # whether it has one element for each token of `like`, [..., T, 1]
    of_rows: bool = False  # whether it has one of `shape` for each row of `like`, [B, *shape]
    of_request: bool = False  # whether the streams of a request have one together

    def shape_of(self, like: Sequence[Any]) -> tuple[Any, ...]:
        """Its shape, where `like` has that one."""
        if self.of_rows:
            return (like[0], *self.shape)
        return (*like[:-1], 1) if self.by_token else tuple(like)

    @property
    def value(self) -> Value:
        return Value(Kind.STATE, self.name)


@dataclass(frozen=True, slots=True)
class Piece:
    """A graph of its own, cut out of the model's. It writes the state that it reads in place."""

    name: str  # "P", "D", "R", "E"; of two that were made one "DE"
    graph_module: fx.GraphModule
    reads: tuple[Value, ...]  # what each placeholder is
    gives: tuple[Value, ...]  # what each output is


@dataclass(frozen=True, slots=True)
class Run:
    piece: Piece


@dataclass(frozen=True, slots=True)
class Choose:
    """One of two ways, as a decision on the device says."""

    by: Value
    deep: tuple[Op, ...]
    reused: tuple[Op, ...]


Op: TypeAlias = "Run | Choose"


@dataclass(frozen=True)
class Program:
    """All that runs on a step."""

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]  # in the order of the graph's placeholders
    slots: tuple[Slot, ...]
    outputs: tuple[Value, ...]  # in the order in which the graph returns them
    # All that runs on a reused step, where the host knows that it is one; None: only the device does.
    reused: Piece | None = None

    def pieces(self) -> Iterator[Piece]:
        """In the order in which they stand; of a choice the deep ones first."""
        return pieces_of(self.ops)

    def piece(self, name: str) -> Piece:
        return next(piece for piece in self.pieces() if piece.name == name)

    @cached_property
    def registers(self) -> dict[Value, int]:
        """A place for every value: the inputs first, then the state, then what pieces give."""
        known = [*self.inputs, *(slot.value for slot in self.slots)]
        given = [value for piece in self.pieces() for value in piece.gives]
        return {value: place for place, value in enumerate(dict.fromkeys([*known, *given]))}


def pieces_of(ops: Sequence[Op]) -> Iterator[Piece]:
    """All pieces of some operations."""
    for op in ops:
        if isinstance(op, Run):
            yield op.piece
        else:
            yield from pieces_of(op.deep)
            yield from pieces_of(op.reused)
