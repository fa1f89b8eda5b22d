"""Finds repeated blocks where no names tell them: runs of the same operations in the graph's own order.

A loop over blocks is traced in the order in which it runs, so that blocks of one form are the same text again and
again: equal operations on equal shapes. The longest such run gives one block; what stands before and after the run is
then compared with that block, allowing for what a model adds between blocks (adapters) or leaves out of a first or last
one. Numbers among the arguments do not count: they may differ from block to block (a scale, a shift of windows).

Requires: a graph in the order in which it was traced. Ensures: blocks that do not overlap, in that order.
Not handled: blocks that all differ in shape, as in a U-Net; fewer than two equal blocks in a row.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import fx

from ..graph import effects, operators, values
from ..graph.align import in_order
from ..graph.dataflow import Dataflow

_WINDOW = 6  # operations that are looked up together: single ones recur within a block
_TOLERANCE = 2  # operations in a row that may differ between blocks
_SAME = 0.9  # share of a block's operations that must not
_CANDIDATES = 12  # distances tried in each round
_ROUNDS = 8  # kinds of blocks looked for
_EQUAL = 0.9  # share of a block's heavy operations that every one must have,
_ALIKE = 0.5  # and that a first or last one must

Nodes = tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    start: int
    period: int
    end: int

    @property
    def covers(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class _Kind:
    """Blocks of one form, as places in the text."""

    form: list[int]
    heavy: frozenset[int]  # places in `form` of heavy operations
    blocks: list[list[int]]  # grows at both ends


def repeated_blocks(
    flow: Dataflow, is_block: Callable[[Nodes], bool], taken: Collection[fx.Node] = ()
) -> list[list[Nodes]]:
    """Lists of blocks of one form each, in graph order, of nodes that are not `taken`; `is_block` tells blocks from
    other repetitions.
    """
    nodes = [n for n in flow.order if n.op.startswith("call_") and not effects.is_mode(n) and n not in taken]
    text = _as_numbers(nodes)
    free = list(text)  # a place that belongs to a block gets a number of its own
    kinds: list[_Kind] = []
    for _ in range(_ROUNDS):
        run = _unit(nodes, free, is_block)
        if run is None:
            break
        kinds.append(_kind(nodes, free, run))
        _extend(kinds[-1], free, _EQUAL)
    # What is less alike comes last, for it may be another kind; but small ones may be parts of a large block.
    for kind in sorted(kinds, key=lambda kind: -len(kind.form)):
        if kind.blocks:
            _extend(kind, _open_to(kind, kinds, text), _ALIKE)
            first, last = kind.blocks[0][0], kind.blocks[-1][-1]
            for other in kinds:
                if other is not kind:
                    other.blocks[:] = [places for places in other.blocks if places[-1] < first or places[0] > last]
    kinds = [kind for kind in kinds if kind.blocks]
    lists = [[tuple(nodes[i] for i in places) for places in kind.blocks] for kind in kinds]
    return sorted(lists, key=lambda blocks: blocks[0][0])


def _open_to(kind: _Kind, kinds: list[_Kind], text: list[int]) -> list[int]:
    """The text with the places covered that another kind of about the same size, or this one, has already."""
    left = list(text)
    for other in kinds:
        if other is kind or 2 * len(other.form) >= len(kind.form):
            for places in other.blocks:
                _cover(left, places)
    return left


def _as_numbers(nodes: Sequence[fx.Node]) -> list[int]:
    """One number for each operation: equal for equal operations on equal shapes."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_form(node), len(numbers)) for node in nodes]


def _form(node: fx.Node) -> object:
    recorded = values.tensor(node)
    dtype = recorded.dtype if recorded is not None else None
    return node.op, operators.name(node), dtype, _sizes(node), tuple(_sizes(n) for n in node.all_input_nodes)


def _sizes(node: fx.Node) -> tuple[str, ...]:
    # A size that depends on data gets a new symbol, u0, u1, ..., in each block.
    return tuple("u" if values.is_data_dependent(size) else size for size in values.size_text(node) or ())


def _unit(nodes: list[fx.Node], text: list[int], is_block: Callable[[Nodes], bool]) -> _Run | None:
    """The longest run of at least two equal blocks."""
    runs = sorted(_runs(text), key=lambda run: (-run.covers, run.period))
    for run in runs:
        run = _aligned(nodes, run)
        if is_block(tuple(nodes[run.start : run.start + run.period])):
            return _inner(nodes, text, run, is_block)
    return None


def _inner(nodes: list[fx.Node], text: list[int], run: _Run, is_block: Callable[[Nodes], bool]) -> _Run:
    """The run inside of one period, where two thirds of it are a repetition: an adapter after every few blocks."""
    start, end = run.start, run.start + run.period
    for inner in sorted(_runs(text[start:end], least=_WINDOW), key=lambda inner: (-inner.covers, inner.period)):
        alike = min(inner.period, inner.covers - inner.period)
        if 3 * max(2, inner.covers // inner.period) * alike <= 2 * run.period:
            break
        if alike == inner.period:
            first = _aligned(nodes, _Run(start + inner.start, inner.period, start + inner.end))
            unit = _Run(first.start, alike, first.start + alike)
        else:  # something stands between two blocks, or in one of them: the last one is whole
            unit = _Run(start + inner.start + inner.period, run.period - inner.start - inner.period, end)
        block, before = nodes[unit.start : unit.end], nodes[start + inner.start :][:alike]
        # Two attentions that share an MLP are no two blocks.
        whole = (_has_mlp(block) and _has_mlp(before)) or not _has_mlp(nodes[start:end])
        if whole and is_block(tuple(block)):
            return _inner(nodes, text, unit, is_block)
    return run


def _has_mlp(nodes: Sequence[fx.Node]) -> bool:
    return any(map(operators.is_activation, nodes))


def _runs(text: Sequence[int], least: int | None = None) -> list[_Run]:
    """Maximal stretches that repeat themselves after a fixed distance: at least once in full, or for `least` places."""
    distances: Counter[int] = Counter()
    last: dict[tuple[int, ...], int] = {}
    for i in range(len(text) - _WINDOW + 1):
        window = tuple(text[i : i + _WINDOW])
        if window in last:
            distances[i - last[window]] += 1
        last[window] = i
    runs = []
    for period, _ in distances.most_common(_CANDIDATES):
        same = [i for i in range(len(text) - period) if text[i] == text[i + period]]
        found = [_Run(places[0], period, places[-1] + 1 + period) for places in _stretches(same)]
        runs += [run for run in found if run.covers >= period + (period if least is None else least)]
    return runs


def _stretches(places: list[int]) -> list[list[int]]:
    """Runs of consecutive places; a few may be missing, where every other block has another kind of attention."""
    found: list[list[int]] = []
    for place in places:
        if not found or place - found[-1][-1] > _TOLERANCE + 1:
            found.append([])
        found[-1].append(place)
    return [stretch for stretch in found if len(stretch) >= _SAME * (stretch[-1] + 1 - stretch[0])]


def _aligned(nodes: list[fx.Node], run: _Run) -> _Run:
    """The run from where a block begins: where the fewest values pass from one period to the next."""
    place = {nodes[i]: i for i in range(run.start, run.end)}
    passing = [0] * (run.end - run.start + 1)
    for i in range(run.start, run.end):
        last = max((place[user] for user in nodes[i].users if user in place), default=i)
        for boundary in range(i + 1, min(last, i + 2 * run.period) + 1):
            passing[boundary - run.start] += 1
    slack = run.covers % run.period

    def cost(offset: int) -> int:
        return sum(passing[boundary] for boundary in range(offset + run.period, run.covers, run.period))

    offset = min(range(slack + 1), key=cost)
    return _Run(run.start + offset, run.period, run.start + offset + run.covers // run.period * run.period)


def _kind(nodes: list[fx.Node], text: list[int], run: _Run) -> _Kind:
    form = text[run.start : run.start + run.period]
    heavy = frozenset(i for i in range(run.period) if operators.is_heavy(nodes[run.start + i]))
    kind = _Kind(form, heavy, [])
    for start in range(run.start, run.end, run.period):
        kind.blocks.append(list(range(start, start + run.period)))
        _cover(text, kind.blocks[-1])
    return kind


def _extend(kind: _Kind, text: list[int], share: float) -> None:
    """Adds the blocks before and after that have this share of the heavy operations."""
    while (places := _next(text, kind, kind.blocks[-1][-1] + 1, share, forward=True)) is not None:
        kind.blocks.append(places)
        _cover(text, places)
    while (places := _next(text, kind, kind.blocks[0][0] - 1, share, forward=False)) is not None:
        kind.blocks.insert(0, places)
        _cover(text, places)


def _cover(text: list[int], places: list[int]) -> None:
    for place in range(places[0], places[-1] + 1):
        text[place] = -1 - place


def _next(text: list[int], kind: _Kind, here: int, share: float, forward: bool) -> list[int] | None:
    """The places of the next block from `here` on; what lies between its operations is not part of it."""
    step = 1 if forward else -1
    places = range(here, here + 2 * step * len(kind.form), step)
    window = list(itertools.takewhile(lambda i: 0 <= i < len(text) and text[i] >= 0, places))
    matches = in_order(kind.form[::step], [text[i] for i in window])
    originals = (i if forward else len(kind.form) - 1 - i for i, _ in matches)
    if not matches or sum(i in kind.heavy for i in originals) < share * len(kind.heavy):
        return None
    return sorted(window[j] for _, j in matches)
