"""Finds repeated blocks where no names tell them: runs of the same operations in the graph's own order.

A loop over blocks is traced in the order in which it runs, so that blocks of one form are the same text again and
again: equal operations on equal shapes. The longest such run gives one block; what stands before and after the run is
then compared with that block, allowing for what a model adds between blocks (adapters) or leaves out of a first or last
one. Numbers among the arguments do not count: they may differ from block to block (a scale, a shift of windows).

Requires: a graph in the order in which it was traced. Ensures: blocks that do not overlap, in that order.
Not handled: blocks that all differ in shape, as in a U-Net; fewer than two equal blocks in a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from torch import fx

from . import effects, values
from .dataflow import Dataflow

_WINDOW = 6  # operations that are looked up together: single ones recur within a block
_TOLERANCE = 2  # operations in a row that may differ between blocks
_CANDIDATES = 12  # distances tried in each round
_ROUNDS = 8  # kinds of blocks looked for
_ALIKE = 0.6  # share of a block's heavy operations that a first or last one must have
_ACTIVATIONS = {"gelu", "silu", "relu", "leaky_relu", "mish", "hardswish", "elu", "sigmoid", "tanh"}
_HEAVY = {
    "linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum",
    "scaled_dot_product_attention",
}  # fmt: skip

Nodes = tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    start: int
    period: int
    end: int

    @property
    def covers(self) -> int:
        return self.end - self.start


def repeated_blocks(flow: Dataflow, is_block: Callable[[Nodes], bool]) -> list[list[Nodes]]:
    """Lists of blocks of one form each, in graph order; `is_block` tells blocks from other repetitions."""
    nodes = [n for n in flow.order if n.op.startswith("call_") and not effects.is_mode(n)]
    text = _as_numbers(nodes)
    free = list(text)  # what is still to be explained; a covered place holds a number of its own
    found: list[list[Nodes]] = []
    for _ in range(_ROUNDS):
        unit = _unit(nodes, free, is_block)
        if unit is None:
            break
        places = _occurrences(nodes, free, unit)
        found.append([tuple(nodes[i] for i in place) for place in places])
        for place in places:
            for i in range(place[0], place[-1] + 1):
                free[i] = -1 - i
    return sorted(found, key=lambda blocks: blocks[0][0])


def _as_numbers(nodes: Sequence[fx.Node]) -> list[int]:
    """One number for each operation: equal for equal operations on equal shapes."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_form(node), len(numbers)) for node in nodes]


def _form(node: fx.Node) -> object:
    recorded = values.tensor(node)
    dtype = recorded.dtype if recorded is not None else None
    return node.op, effects.name(node), dtype, _sizes(node), tuple(_sizes(n) for n in node.all_input_nodes)


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
    """The run inside of one period, where that is itself mostly a repetition: an adapter after every few blocks."""
    start, end = run.start, run.start + run.period
    for inner in sorted(_runs(text[start:end], least=_WINDOW), key=lambda inner: (-inner.covers, inner.period)):
        length = min(inner.period, inner.covers - inner.period)  # of the block: what lies between two is not part of it
        copies = max(2, inner.covers // inner.period)
        if copies * length * 2 <= run.period:
            break
        first = _Run(start + inner.start, inner.period, start + inner.end)
        if length == inner.period:
            first = _aligned(nodes, first)
        block = nodes[first.start : first.start + length]
        # Two attentions that share an MLP are no two blocks: the MLP's activation is in neither.
        if _activations(nodes[start:end]) <= _activations(block) and is_block(tuple(block)):
            return _inner(nodes, text, _Run(first.start, length, first.start + length), is_block)
    return run


def _activations(nodes: Sequence[fx.Node]) -> set[str]:
    return {effects.name(node) for node in nodes} & _ACTIVATIONS


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
        found = [_Run(stretch[0], period, stretch[-1] + 1 + period) for stretch in _stretches(same)]
        runs += [run for run in found if run.covers >= period + (period if least is None else least)]
    return runs


def _stretches(places: list[int]) -> list[list[int]]:
    """Runs of consecutive places; a few may be missing, where every other block has another kind of attention."""
    found: list[list[int]] = []
    for place in places:
        if not found or place - found[-1][-1] > _TOLERANCE + 1:
            found.append([])
        found[-1].append(place)
    return found


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


def _occurrences(nodes: list[fx.Node], text: list[int], run: _Run) -> list[list[int]]:
    """The places of each block: those of the run, and before and after it what is like them."""
    unit = text[run.start : run.start + run.period]
    heavy = {i for i in range(run.period) if effects.name(nodes[run.start + i]) in _HEAVY}
    blocks = [list(range(start, start + run.period)) for start in range(run.start, run.end, run.period)]
    while (place := _next(text, unit, heavy, blocks[-1][-1] + 1, forward=True)) is not None:
        blocks.append(place)
    while (place := _next(text, unit, heavy, blocks[0][0] - 1, forward=False)) is not None:
        blocks.insert(0, place)
    return blocks


def _next(text: list[int], unit: list[int], heavy: set[int], here: int, forward: bool) -> list[int] | None:
    """The places of the next block like `unit` from `here` on; what lies between its operations is not part of it."""
    size = 2 * len(unit)
    window = text[here : here + size] if forward else text[max(0, here + 1 - size) : here + 1]
    first = here if forward else max(0, here + 1 - size)
    wanted = unit if forward else unit[::-1]
    given = window if forward else window[::-1]
    matches = _in_order(wanted, given)
    if heavy and sum(i in heavy for i in _originals(matches, len(unit), forward)) < _ALIKE * len(heavy):
        return None
    places = [j if forward else len(window) - 1 - j for _, j in matches]
    return sorted(first + j for j in places) or None


def _originals(matches: list[tuple[int, int]], length: int, forward: bool) -> list[int]:
    return [i if forward else length - 1 - i for i, _ in matches]


def _in_order(wanted: list[int], given: list[int]) -> list[tuple[int, int]]:
    """Pairs of places (in `wanted`, in `given`) that hold the same, in order."""
    blocks = SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks()
    return [(b.a + k, b.b + k) for b in blocks for k in range(b.size)]
