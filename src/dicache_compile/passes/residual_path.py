"""Follows the residual stream backwards: through additions, slices, concatenations and casts, never into a branch.

A transformer block computes `x + f(x)`. Walking from a block's result back along the operands that an addition passes
through finds the stream that the block carries, whatever its name; the branches `f` end in a linear and lead nowhere.
A slice on the way back (`y = both[:, text:]`) says which operand of an earlier concatenation it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from . import effects, values

_ADDITIONS = {"add", "iadd", "sub", "isub", "add_", "sub_"}
_SAME = {
    "to", "type", "type_as", "float", "half", "bfloat16", "contiguous", "clone", "detach", "dropout", "identity",
    "masked_fill", "clamp", "clip", "nan_to_num", "_to_copy", "alias", "checkpoint",
}  # fmt: skip
_LAYOUT = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze", "expand", "rearrange",
    "movedim", "swapaxes", "moveaxis", "repeat", "repeat_interleave", "roll", "pad", "index_select", "gather",
    "_unsafe_view",
}  # fmt: skip
_ORDERED = {"view", "reshape", "expand"}  # layouts that leave a tensor as it is where they leave its size
_SCALED = {"mul", "imul", "mul_", "truediv", "div", "where", "layer_norm", "rms_norm", "lerp"}
_MIXED = {"linear"}


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a tensor that is being followed, along one dimension."""

    dim: int
    start: int
    length: int | None  # None: it depends on data; then a start of 0 is the front, any other the end


Step = tuple[fx.Node, Window | None]


def residual_path(start: fx.Node, arrived: Callable[[fx.Node], bool]) -> tuple[fx.Node, ...] | None:
    """The nodes from `start` back to the first one for which `arrived` holds, both included, or None."""
    steps = residual_steps((start, None), lambda step: arrived(step[0]))
    return None if steps is None else tuple(node for node, _ in steps)


def residual_steps(
    start: Step, arrived: Callable[[Step], bool], rather: Callable[[Step], bool] | None = None
) -> tuple[Step, ...] | None:
    """The same with the part of each node that is followed; None where that is the whole or unknown.

    A step for which `rather` holds is taken before one for which only `arrived` does.

    Tries plain additions first; where those lead nowhere, also scaled and normalised streams (`s * x + f(x)`,
    `norm(x + f(x))`), then linears that join a stream with an earlier one (`linear(cat(x, skip))`): both of these for
    `rather` before any for `arrived`, since a gate by which a branch is scaled may be of the stream's size.
    """
    plain, wider = frozenset[str](), (frozenset(_SCALED), frozenset(_SCALED | _MIXED))
    aims = (arrived,) if rather is None else (rather, arrived)
    tries = [(aim, plain) for aim in aims] + [(aim, also) for aim in aims for also in wider]
    return next((found for aim, also in tries if (found := _walk(start, aim, also)) is not None), None)


def _walk(start: Step, arrived: Callable[[Step], bool], also: frozenset[str]) -> tuple[Step, ...] | None:
    # Depth first with an explicit stack: trunks are deeper than Python's recursion limit.
    came_from: dict[Step, Step | None] = {start: None}
    stack: list[Step] = [start]
    while stack:
        here = stack.pop()
        if arrived(here):
            path: list[Step] = []
            step: Step | None = here
            while step is not None:
                path.append(step)
                step = came_from[step]
            return tuple(reversed(path))
        for after in reversed(_sources(*here, also)):
            if after not in came_from:
                came_from[after] = here
                stack.append(after)
    return None


def is_layout(node: fx.Node) -> bool:
    """Whether a node gives its operand's values in another shape or order."""
    return effects.name(node) in _LAYOUT | _SAME


def _sources(node: fx.Node, window: Window | None, also: frozenset[str]) -> list[Step]:
    """The operands that `node` passes through, likeliest first."""
    called = effects.name(node)
    if node.op not in ("call_function", "call_method"):
        return []
    if called in ("getitem", "narrow", "split", "chunk", "split_with_sizes", "tensor_split", "unbind", "slice"):
        return _sliced(node, window)
    if called in ("cat", "concat", "concatenate"):
        return _concatenated(node, window)
    operands = [n for n in node.all_input_nodes if values.tensor(n) is not None]
    if called in _ADDITIONS or called in also:
        if called in _MIXED:
            whole = window is None or window.dim == len(values.size_text(node) or ()) - 1
            return [(operands[0], None if whole else window)] if operands else []
        # The latest first: of a stream and a skip connection, the stream.
        return [(n, window) for n in sorted(operands, reverse=True) if values.same_size(n, node)]
    if called in _SAME:
        return [(n, window) for n in operands[:1]]
    if called in _LAYOUT:
        in_order = called in _ORDERED and operands and values.size_text(operands[0]) == values.size_text(node)
        return [(n, window if in_order else None) for n in operands[:1]]
    return []


def _sliced(node: fx.Node, window: Window | None) -> list[Step]:
    source, recorded = node.all_input_nodes[0], values.tensor(node)
    whole = values.value(source)
    if recorded is None:  # a split gives a tuple; the getitem after it knows which part
        return [(source, window)]
    if isinstance(whole, (tuple, list)):
        parts = [part for part in whole if isinstance(part, torch.Tensor)]
        base = source.all_input_nodes[0] if source.all_input_nodes else source
        index = node.args[1]
        full = values.tensor(base)
        if full is None or not isinstance(index, int) or len(parts) != len(whole) or full.dim() != recorded.dim():
            return [(base, None)]
        shapes = [values.shape_hint(part) for part in parts]
        dim = next((d for d, size in enumerate(values.shape_hint(full)) if size != shapes[index][d]), 0)
        return [(base, _within(window, Window(dim, sum(s[dim] for s in shapes[:index]), shapes[index][dim])))]
    if not isinstance(whole, torch.Tensor) or whole.dim() != recorded.dim():
        return [(source, None)]
    return [(source, _within(window, _slice_window(node, whole, recorded)))]


def _slice_window(node: fx.Node, whole: torch.Tensor, part: torch.Tensor) -> Window | None:
    """Where `whole[:, a:b]` lies in `whole`; None where it is not one window along one dimension."""
    before, after = values.shape_hint(whole), values.shape_hint(part)
    changed = [d for d, (b, a) in enumerate(zip(whole.shape, part.shape, strict=True)) if str(b) != str(a)]
    if len(changed) != 1:
        return None
    dim = changed[0]
    counted = values.is_data_dependent(f"{whole.shape[dim]} {part.shape[dim]}")
    if effects.name(node) in ("narrow", "slice"):
        start = node.args[2] if len(node.args) > 2 else None
        if counted:
            return None
    else:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if any(part is Ellipsis for part in index):
            spot = next(i for i, part in enumerate(index) if part is Ellipsis)
            index = (*index[:spot], *[slice(None)] * (whole.dim() - len(index) + 1), *index[spot + 1 :])
        window = index[dim] if dim < len(index) else slice(None)
        if not isinstance(window, slice):
            return None
        start = window.start
        if counted:
            front, end = start in (None, 0), window.stop is None
            return Window(dim, 0 if front else -1, None) if front != end else None
    if isinstance(start, fx.Node):
        recorded = values.value(start)
        start = values.hint(recorded) if isinstance(recorded, (int, torch.SymInt)) else None
    elif isinstance(start, torch.SymInt):
        start = values.hint(start)
    elif start is None:
        start = 0
    if not isinstance(start, int) or counted:
        return None
    return Window(dim, start if start >= 0 else before[dim] + start, after[dim])


def _within(inner: Window | None, outer: Window | None) -> Window | None:
    """`inner`, a window of a slice, as a window of what was sliced."""
    if outer is None or inner is None:
        return outer
    if inner.dim != outer.dim or inner.length is None or outer.length is None:
        return outer
    return Window(outer.dim, outer.start + inner.start, inner.length)


def _concatenated(node: fx.Node, window: Window | None) -> list[Step]:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
    result = values.tensor(node)
    if not isinstance(parts, (tuple, list)) or not isinstance(dim, int) or result is None:
        return []
    dim %= result.dim()
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
