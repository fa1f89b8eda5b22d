"""Has ranks decide as one: sums over a picture become those of all of its parts, by one small collective for many.

Each rank measures what it has. What the methods of a gate or an estimator take of a whole value, its mean say, is then
put together of all ranks', so that the error is that of the whole picture, whatever part of it a rank has. What decides
besides goes along: whether a generation starts, whether a rank has to run deep.
The ranks' numbers are gathered and each adds them up in their order: all come to the same bits, whatever the algorithm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from ..graph.operators import OF_PARTS, meaning
from ..plan import Group

if TYPE_CHECKING:
    from .emit import Emitter

ANY, ALL = "any", "all"
SUM, MEAN = "sum", "mean"
FIRST, LARGEST, SMALLEST = "first", "largest", "smallest"
_WAYS = (ANY, ALL, FIRST, LARGEST, SMALLEST, SUM, MEAN)


@dataclass(frozen=True, slots=True)
class Column:
    """A number that each rank has."""

    node: fx.Node  # float32 or bool, of shape (); where rows decide for themselves of shape (B,)
    way: str  # what is made of all ranks'
    of: fx.Node | None = None  # of a mean: of what


@dataclass
class Agreeing:
    """What ranks agree on in one piece."""

    emitter: Emitter
    group: Group
    parts: set[fx.Node] = field(default_factory=set)  # of which each rank may have another one
    rounds: Rounds | None = None  # while what is measured is collected for one collective; None: each at once
    _agreed: set[fx.Node] = field(default_factory=set)

    def watch(self, node: fx.Node) -> fx.Node:
        """What is in the place of a node that a method makes: of a mean of a part, that of all."""
        way = OF_PARTS.get(meaning(node)) if node.op in ("call_method", "call_function") else None
        operand = node.args[0] if node.args else None
        if way is None or self.group.hold == "branches" or not isinstance(operand, fx.Node):
            return node
        if not self.emitter.is_whole(node) or not self.is_part(operand):
            return node
        return self._over_ranks(Column(node, way, operand if way == MEAN else None))

    def same(self, node: fx.Node, way: str = LARGEST) -> fx.Node:
        """A number that decides: as it is where all ranks have it, else what is made of theirs."""
        if self.group.hold == "branches" or not self.is_part(node):
            return node
        return self._over_ranks(Column(node, way))

    def is_part(self, node: fx.Node) -> bool:
        """Whether a value follows from one that each rank may have another part of, not by way of all ranks."""
        return self.reaches(node, self.parts)

    def reaches(self, node: fx.Node, wanted: Collection[fx.Node]) -> bool:
        left, seen = [node], {node}
        while left:
            one = left.pop()
            if one in wanted:
                return True
            if one in self._agreed:
                continue
            left += [needed for needed in one.all_input_nodes if needed not in seen]
            seen.update(one.all_input_nodes)
        return False

    def gather(self, columns: Sequence[Column]) -> list[fx.Node]:
        """What is made of all ranks' numbers, by one collective."""
        ordered = [column for way in _WAYS for column in columns if column.way == way]
        nodes = [[column.node for column in ordered if column.way == way] for way in _WAYS]
        means = [column.of for column in ordered if column.way == MEAN]
        group, size = self.group.name, self.group.size
        found = self.emitter.trace_batch(_over_ranks, nodes, means, group, size, self.group.hold)
        self._agreed.update(found)
        for node in found:
            self.emitter.by_row(node)
        by_column = dict(zip(map(id, ordered), found, strict=True))
        return [by_column[id(column)] for column in columns]

    def _over_ranks(self, column: Column) -> fx.Node:
        return self.gather([column])[0] if self.rounds is None else self.rounds.take(column)


@dataclass
class Rounds:
    """Collects what is measured before a decision, and asks the ranks for all of it at once.

    What is measured is traced again and again: each time it finds more of its sums replaced by those of all ranks,
    until none is left. A sum that needs no other one is of the first round; one that needs those, as of an estimate
    with the gamma that they give, is of the second.
    """

    agreeing: Agreeing
    _known: dict[int, fx.Node] = field(default_factory=dict)  # by the place in which they are asked for
    _open: dict[int, Column] = field(default_factory=dict)
    _place: int = 0

    @property
    def is_done(self) -> bool:
        return not self._open

    def begin(self) -> None:
        self._open, self._place = {}, 0

    def take(self, column: Column) -> fx.Node:
        place, self._place = self._place, self._place + 1
        if place in self._known:
            return self._known[place]
        self._open[place] = column
        return column.node

    def close(self, votes: Sequence[Column] = ()) -> list[fx.Node]:
        """Asks for what needs no other open sum, and for `votes`: these."""
        others = {column.node for column in self._open.values()}
        ready = {place: column for place, column in self._open.items() if not self._waits(column.node, others)}
        found = self.agreeing.gather([*votes, *ready.values()])
        self._known.update(zip(ready, found[len(votes) :], strict=True))
        return found[: len(votes)]

    def _waits(self, node: fx.Node, others: set[fx.Node]) -> bool:
        return self.agreeing.reaches(node, others - {node})


# Traced into the graph:


def _over_ranks(
    columns: Sequence[Sequence[Tensor]], means: Sequence[Tensor], group: str, size: int, hold: str
) -> list[Tensor]:
    """What is made of all ranks' numbers, in the order of `_WAYS`. `means`: of what each mean is.

    All are float32 of shape (), or (B,) where rows decide for themselves. Of parts of unlike sizes a mean is weighted
    by these. A sum of what all have copies of is that of one.
    """
    own = [one.to(torch.float32) for ones in columns for one in ones]
    own += [torch.full_like(own[0], one.numel()) for one in means]
    sent = torch.stack(own, dim=-1)
    collectives = torch.ops._c10d_functional
    everyone = collectives.wait_tensor(collectives.all_gather_into_tensor(sent, size, group))
    everyone = torch.unflatten(everyone, 0, (size, -1))  # [ranks, numbers], or [ranks, B, numbers]
    found: list[Tensor] = []
    start = 0
    for way, ones in zip(_WAYS, columns, strict=True):
        if ones:
            theirs = everyone.narrow(-1, start, len(ones))
            start += len(ones)
            made = _made(way, theirs, everyone.narrow(-1, len(own) - len(ones), len(ones)), hold)
            found += [made.select(-1, place) for place in range(len(ones))]
    return found


def _made(way: str, theirs: Tensor, sizes: Tensor, hold: str) -> Tensor:
    """Of [ranks, ..., numbers]; `sizes` are those of means."""
    if way == MEAN:
        return (theirs * sizes).sum(0) / sizes.sum(0)
    if way == SUM:
        return theirs.sum(0) if hold == "parts" else theirs.mean(0)
    if way == FIRST:
        return theirs.select(0, 0)
    if way == SMALLEST:
        return theirs.amin(0)
    if way == ALL:
        return theirs.amin(0) > 0
    largest = theirs.amax(0)
    return largest > 0 if way == ANY else largest
