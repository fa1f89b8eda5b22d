"""Takes values of a cut apart, and puts them together again: parts of a sequence, complex numbers as pairs.

Each function adds nodes to the graph, with their regions; what reads a value below the deep region then reads what was
put together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from ..graph import values
from ..graph.layout import Window
from ..plan import Region

Regions = dict[fx.Node, Region]


def part_of(node: fx.Node, window: Window | None, regions: Regions) -> fx.Node:
    """A slice of a value, in its region; the value itself where there is no window."""
    if window is None:
        return node
    assert window.length is not None
    index = (*[slice(None)] * window.dim, slice(window.start, window.start + window.length))
    return added(node, operator.getitem, (node, index), regions, regions.get(node, Region.PROLOGUE))


def joined_again(y: fx.Node, parts: Sequence[fx.Node], dim: int, regions: Regions) -> None:
    """Has the epilogue read a deep value as what its parts are together."""
    readers = _readers(y, regions)
    whole = added(parts[-1], torch.cat, (tuple(parts), dim), regions, Region.EPILOGUE)
    y.replace_all_uses_with(whole, delete_user_cb=lambda user: user in readers)


def real(node: fx.Node, regions: Regions) -> fx.Node:
    """A complex value as real numbers, [..., 2]; any other as it is."""
    recorded = values.tensor(node)
    if recorded is None or not recorded.is_complex():
        return node
    region = regions.get(node, Region.PROLOGUE)
    readers = _readers(node, regions) if region is Region.DEEP else set()
    plain = added(node, torch.resolve_conj, (node,), regions, region)
    pair = added(plain, torch.view_as_real, (plain,), regions, region)
    if readers:
        whole = added(pair, torch.view_as_complex, (pair,), regions, Region.EPILOGUE)
        node.replace_all_uses_with(whole, delete_user_cb=lambda user: user in readers)
    return pair


def _readers(y: fx.Node, regions: Regions) -> set[fx.Node]:
    return {user for user in y.users if regions.get(user) is not Region.DEEP}


def added(
    after: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], regions: Regions, region: Region
) -> fx.Node:
    """A call of a function right after a node (of an input: after all inputs), with its fake value."""
    last = after if after.op != "placeholder" else after.graph.find_nodes(op="placeholder")[-1]
    known: Any = fx.map_arg(args, lambda node: values.value(node))  # type: ignore[arg-type, return-value]
    mode = next(v.fake_mode for v in _flat(known) if isinstance(v, FakeTensor))
    with after.graph.inserting_after(last):
        new = after.graph.call_function(target, args)
    with mode, torch.no_grad():
        new.meta = {"example_value": target(*known), "stack_trace": after.stack_trace}
    regions[new] = region
    return new


def _flat(known: Any) -> list[Any]:
    return [item for part in known for item in _flat(part)] if isinstance(known, (tuple, list)) else [known]
