"""Follows the residual stream backwards: through additions, slices, concatenations and casts, never into a branch.

A transformer block computes `x + f(x)`. Walking from a block's result back along the operands that an addition passes
through finds the stream that the block carries, whatever its name; the branches `f` end in a linear and lead nowhere.
A slice on the way back (`y = both[:, text:]`) says which operand of an earlier concatenation it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import fx

from . import operators, values
from .layout import Window, concatenated_dim, is_counted, is_unmoved, traced_back

Step = tuple[fx.Node, Window | None]
Path = tuple[fx.Node, ...]
Trail = Callable[[], Path]  # gives the nodes from the start back to where the walk stands
Arrived = Callable[[Step, Trail], bool]
Also = Callable[[fx.Node], bool]  # what is followed besides additions


def residual_path(start: fx.Node, arrived: Callable[[fx.Node], bool]) -> tuple[fx.Node, ...] | None:
    """The nodes from `start` back to the first one for which `arrived` holds, both included, or None."""
    found = residual_walk((start, None), lambda step, _: arrived(step[0]))
    return None if found is None else found[1]


def residual_walk(
    start: Step, arrived: Arrived, rather: Arrived | None = None
) -> tuple[Step, tuple[fx.Node, ...]] | None:
    """Where a walk from `start` first arrives, and the nodes from `start` to there, both included; None: nowhere.

    A step is a node with the part of it that is followed: None where that is the whole or unknown. One for which
    `rather` holds is taken before one for which only `arrived` does.

    Tries plain additions first; where those lead nowhere, also scaled and normalised streams (`s * x + f(x)`,
    `norm(x + f(x))`), then linears that join a stream with an earlier one (`linear(cat(x, skip))`): both of these for
    `rather` before any for `arrived`, since a gate by which a branch is scaled may be of the stream's size.
    """
    aims = (arrived,) if rather is None else (rather, arrived)
    tries = [(aim, _nothing) for aim in aims] + [(aim, also) for aim in aims for also in (operators.scales, _mixes)]
    return next((found for aim, also in tries if (found := _walk(start, aim, also)) is not None), None)


def _walk(start: Step, arrived: Arrived, also: Also) -> tuple[Step, tuple[fx.Node, ...]] | None:
    # Depth first with an explicit stack: trunks are deeper than Python's recursion limit.
    came_from: dict[Step, Step | None] = {start: None}

    def trail(step: Step | None) -> tuple[fx.Node, ...]:
        path: list[fx.Node] = []
        while step is not None:
            path.append(step[0])
            step = came_from[step]
        return tuple(reversed(path))

    stack: list[Step] = [start]
    while stack:
        here = stack.pop()
        if arrived(here, partial(trail, here)):
            return here, trail(here)
        for after in reversed(_sources(*here, also)):
            if after not in came_from:
                came_from[after] = here
                stack.append(after)
    return None


def _nothing(_: fx.Node) -> bool:
    return False


def _mixes(node: fx.Node) -> bool:
    return operators.scales(node) or operators.is_linear(node)


def _sources(node: fx.Node, window: Window | None, also: Also) -> list[Step]:
    """The operands that `node` passes through, likeliest first."""
    if node.op not in ("call_function", "call_method"):
        return []
    if operators.takes_part(node):
        return _sliced(node, window)
    if operators.joins(node):
        return _concatenated(node, window)
    operands = [n for n in node.all_input_nodes if values.tensor(n) is not None]
    if operators.is_addition(node) or also(node):
        if operators.is_linear(node):
            whole = window is None or window.dim == len(values.size_text(node) or ()) - 1
            return [(operands[0], None if whole else window)] if operands else []
        # The latest first: of a stream and a skip connection, the stream.
        return [(n, window) for n in sorted(operands, reverse=True) if values.same_size(n, node)]
    if operators.hands_on(node):
        return [(n, window) for n in operands[:1]]
    if operators.is_layout(node):
        return [(n, window if is_unmoved(node, n) else None) for n in operands[:1]]
    return []


def _sliced(node: fx.Node, window: Window | None) -> list[Step]:
    source = node.all_input_nodes[0]
    if values.tensor(node) is None:  # a split gives a tuple; the getitem after it knows which part
        return [(source, window)]
    if isinstance(values.value(source), (tuple, list)):
        if not source.all_input_nodes:
            return []
        source = source.all_input_nodes[0]
    if values.tensor(source) is None:
        return [(source, None)]
    return [(source, _within(window, _slice_window(node, source)))]


def _slice_window(node: fx.Node, source: fx.Node) -> Window | None:
    """Where a slice lies in what it is of; None where it is not one window along one dimension."""
    if not is_counted((node, source)):
        found = traced_back((node, source))
        return found if isinstance(found, Window) else None
    if not operators.is_item(node) or isinstance(values.value(node.all_input_nodes[0]), (tuple, list)):
        return None
    # Of a size that depends on data no number is known: `x[:, :n]` is its front, `x[:, n:]` its end.
    before, after = values.size_text(source) or (), values.size_text(node) or ()
    changed = [dim for dim, (b, a) in enumerate(zip(before, after, strict=False)) if b != a]
    if len(changed) != 1 or len(before) != len(after):
        return None
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(part is Ellipsis for part in index):
        spot = next(i for i, part in enumerate(index) if part is Ellipsis)
        index = (*index[:spot], *[slice(None)] * (len(before) - len(index) + 1), *index[spot + 1 :])
    (dim,) = changed
    taken = index[dim] if dim < len(index) else slice(None)
    if not isinstance(taken, slice) or taken.step not in (None, 1):
        return None
    front, end = taken.start in (None, 0), taken.stop is None
    return Window(dim, 0 if front else -1, None) if front != end else None


def _within(inner: Window | None, outer: Window | None) -> Window | None:
    """`inner`, a window of a slice, as a window of what was sliced."""
    if outer is None or inner is None:
        return outer
    if inner.dim != outer.dim or inner.length is None or outer.length is None:
        return outer
    return Window(outer.dim, outer.start + inner.start, inner.length)


def _concatenated(node: fx.Node, window: Window | None) -> list[Step]:
    parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
    result = values.tensor(node)
    if not isinstance(parts, (tuple, list)) or result is None:
        return []
    dim = concatenated_dim(node) % result.dim()
    if (
        window is not None
        and window.dim == dim
        and (window.length is None or values.is_data_dependent(str(result.shape[dim])))
    ):
        # The front of what was joined is taken for its first part, the end for its last.
        part = parts[0 if window.start == 0 else -1]
        return [(part, None)] if window.length is None and isinstance(part, fx.Node) else []
    found: list[Step] = []
    start = 0
    for part in parts:
        if not isinstance(part, fx.Node) or (recorded := values.tensor(part)) is None:
            return []
        length = values.shape_hint(recorded)[dim]
        if window is None or window.dim != dim:
            found.append((part, window))
        elif start <= window.start and window.start + (window.length or 0) <= start + length:
            whole = window.start == start and window.length == length
            return [(part, None if whole else Window(dim, window.start - start, window.length))]
        start += length
    # Nothing says which part: the longest first, images being longer than their texts; of equals the latest.
    found.sort(key=lambda item: item[0], reverse=True)
    return sorted(found, key=lambda item: -values.shape_hint(values.tensor(item[0]))[dim])  # type: ignore[arg-type]
