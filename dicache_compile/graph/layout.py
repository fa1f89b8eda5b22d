"""Which element of one value becomes which element of a later one, along a path through the graph.

A path leads from a value back to one that it came from: through additions, which keep every element at its place, and
through layouts, slices and concatenations, which do not. Points of the later value are followed back through each
operation, as numbers. A layout is run on a tensor without memory: the strides of the view that it gives say where each
element was before, whatever the operation is called.

Not handled: operations that give no view (`roll`, `gather`, `index_select`): where these put an element is not known.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from . import operators, values

_ALONG = 33  # points along each dimension,
_WITHIN = 64  # and anywhere in the value


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a tensor that is being followed, along one dimension."""

    dim: int
    start: int
    length: int | None  # None: it depends on data; then a start of 0 is the front, any other the end


def is_counted(path: Sequence[fx.Node]) -> bool:
    """Whether a size on the path depends on data, so that no number is known to follow points with."""
    return any(values.is_data_dependent(size) for node in path for size in values.size_text(node) or ())


def traced_back(path: Sequence[fx.Node], window: Window | None = None) -> Window | bool:
    """Where the value at the path's start stands in the one at its end.

    `path` leads from a value back to its source; `window` is the part of the first that is followed. True: element for
    element at the same place; a window: so too, within that part of the source; False: elsewhere, or not known.
    """
    points = points_back(path, window)
    if points is None:
        return False
    start, end, features = points
    if start.shape != end.shape:
        return False
    moved = end - start
    if features:
        moved = moved[:, :-1]
    if moved.numel() and not (moved == moved[0]).all():
        return False
    return _window(moved[0].tolist(), _sizes_of(path[0], window), _sizes(path[-1]), features)


def points_back(path: Sequence[fx.Node], window: Window | None) -> tuple[Tensor, Tensor, bool] | None:
    """Points of the value at the path's start, where they stand in the one at its end, and whether their last dimension
    means nothing any more; None where that is not known, or where some of them come from elsewhere.
    """
    if window is not None and window.length is None:
        return None
    start = _points(_sizes_of(path[0], window))
    points: Tensor | None = start.clone()
    assert points is not None
    if window is not None:
        points[:, window.dim] += window.start
    features = False
    for node, needed in itertools.pairwise(path):
        features |= operators.is_linear(node)
        points = back_through(node, needed, points, features)
        if points is None:
            return None
    return start, points, features


def _sizes_of(node: fx.Node, window: Window | None) -> list[int]:
    sizes = _sizes(node)
    if window is not None:
        assert window.length is not None
        sizes[window.dim] = window.length
    return sizes


def _window(moved: list[int], sizes: list[int], whole: list[int], features: bool) -> Window | bool:
    compared = len(sizes) - features
    differing = [dim for dim in range(compared) if sizes[dim] != whole[dim]]
    if not any(moved) and not differing:
        return True
    dims = {dim for dim in range(len(moved)) if moved[dim]} | set(differing)
    if len(dims) != 1 or features:
        return False
    (dim,) = dims
    return Window(dim, moved[dim], sizes[dim])


def _sizes(node: fx.Node) -> list[int]:
    recorded = values.tensor(node)
    assert recorded is not None
    return list(values.shape_hint(recorded))


def _points(sizes: Sequence[int]) -> Tensor:
    """Points of a tensor of these sizes, [points, dimensions]: along every dimension, and all over, always the same."""
    rows = [torch.zeros(1, len(sizes), dtype=torch.int64)]
    for dim, size in enumerate(sizes):
        places = torch.linspace(0, size - 1, min(size, _ALONG), dtype=torch.float64).round().long()
        row = torch.zeros(len(places), len(sizes), dtype=torch.int64)
        row[:, dim] = places
        rows.append(row)
    generator = torch.Generator().manual_seed(0)
    rows.append((torch.rand(_WITHIN, len(sizes), generator=generator) * torch.tensor(sizes)).long())
    return torch.cat(rows)


def keeps_places(node: fx.Node) -> bool:
    """Whether every element of an operand of a node's own size stays at its place, by what the node does."""
    return operators.is_addition(node) or operators.hands_on(node) or operators.scales(node)


def is_unmoved(node: fx.Node, operand: fx.Node) -> bool:
    """Whether a view is its operand as it was, by their sizes and strides."""
    mine, theirs = values.tensor(node), values.tensor(operand)
    if mine is None or theirs is None or not mine.layout == theirs.layout == torch.strided:
        return False
    return str((mine.shape, mine.stride())) == str((theirs.shape, theirs.stride()))


def back_through(node: fx.Node, needed: fx.Node, points: Tensor, features: bool = False) -> Tensor | None:
    """Where elements of `node` were in its operand `needed`, [points, dimensions]; None where that is not known.

    `features`: whether places along the last dimension mean nothing.
    """
    if operators.joins(node):
        return _before_concatenation(node, needed, points, features)
    if keeps_places(node) and values.same_size(node, needed):
        return points
    if operators.is_linear(node):
        return points
    view = _view(node, needed)
    if view is None:
        return None
    sizes = _sizes(needed)
    if view.dim() != points.shape[1]:
        return None
    flat: Tensor = (points * torch.tensor(view.stride(), dtype=torch.int64)).sum(1) + int(view.storage_offset())
    if not sizes:
        return points.new_zeros(len(points), 0)
    return torch.stack(torch.unravel_index(flat, tuple(sizes)), dim=1)


def _before_concatenation(node: fx.Node, needed: fx.Node, points: Tensor, features: bool) -> Tensor | None:
    result = values.tensor(node)
    parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
    assert result is not None
    assert isinstance(parts, (tuple, list))
    dim = concatenated_dim(node) % result.dim()
    if features and dim == result.dim() - 1:
        return points
    start = 0
    for part in parts:
        assert isinstance(part, fx.Node)
        length = _sizes(part)[dim]
        if part is needed:
            places = points[:, dim] - start
            if bool(((places < 0) | (places >= length)).any()):
                return None
            moved = points.clone()
            moved[:, dim] = places
            return moved
        start += length
    return None


def concatenated_dim(node: fx.Node) -> int:
    """The dimension along which a `cat` joins."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return dim if isinstance(dim, int) else 0


def _view(node: fx.Node, needed: fx.Node) -> Tensor | None:
    """What `node` makes of a contiguous tensor of `needed`'s size that has no memory, if that is a view of it."""
    base = torch.empty(_sizes(needed), device="meta")
    try:
        result = _run(node, needed, base)
    except Exception:  # whatever an operator does that is no layout
        return None
    if not isinstance(result, Tensor) or result.untyped_storage()._cdata != base.untyped_storage()._cdata:
        return None
    return result


def _run(node: fx.Node, needed: fx.Node, base: Tensor) -> Any:
    def argument(other: fx.Node) -> Any:
        if other is needed:
            return base
        if needed in other.all_input_nodes and isinstance(values.value(other), (tuple, list)):
            return _run(other, needed, base)  # a split, of which this is a part
        known = values.value(other)
        if isinstance(known, (int, torch.SymInt)):
            number = values.hint(known)
            if number is not None:
                return number
        if isinstance(known, torch.Size):
            return tuple(values.hint(size) for size in known)
        recorded = values.tensor(other)
        if recorded is not None and operators.is_sized_as(node):
            return torch.empty(values.shape_hint(recorded), device="meta")
        raise ValueError(f"{other.name} is not known before it runs")

    args: Any = fx.map_arg(node.args, argument)
    kwargs: Any = fx.map_arg(node.kwargs, argument)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.target is getattr:
        return getattr(*args)
    if node.target is operator.getitem:
        return args[0][tuple(args[1]) if isinstance(args[1], list) else args[1]]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def size_of(y: fx.Node, part: Window | None) -> tuple[str, ...] | None:
    size = values.size_text(y)
    if size is None or part is None:
        return size
    return (*size[: part.dim], str(part.length), *size[part.dim + 1 :])


def is_like(step: tuple[fx.Node, Window | None], y: fx.Node, part: Window | None = None) -> bool:
    """Whether a value, or the part of it that is followed, has the size of y or a part of it."""
    node, window = step
    if window is None:
        return values.same_size(node, y)
    recorded = values.tensor(node)
    if recorded is None or not isinstance(recorded.shape[window.dim], int):
        return False  # under another size the part would stand elsewhere
    size = list(values.size_text(node) or ())
    size[window.dim] = str(window.length)
    return tuple(size) == size_of(y, part)
