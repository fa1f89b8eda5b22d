"""Records what the nodes of a piece give, as Dynamo does for its own graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..graph import effects

_KEY = "example_value"


def record_fake_values(gm: fx.GraphModule, examples: Sequence[object], mode: FakeTensorMode) -> None:
    """Gives each node of a piece that was not in Dynamo's graph its fake value.

    PyTorch keeps a compiled graph for the next process only if all of its nodes have one.
    """
    for placeholder, example in zip(gm.graph.find_nodes(op="placeholder"), examples, strict=True):
        placeholder.meta.setdefault(_KEY, example)
    # A node that cannot be run in this way costs the cache its entry, and nothing else.
    with suppress(Exception), mode, torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "get_attr" and isinstance(constant := getattr(gm, str(node.target), None), torch.Tensor):
                node.meta.setdefault(_KEY, mode.from_tensor(constant, static_shapes=True))
            if node.op in ("call_function", "call_method") and _KEY not in node.meta and not effects.is_mode(node):
                node.meta[_KEY] = _run(node)


def _run(node: fx.Node) -> Any:
    def recorded(needed: fx.Node) -> Any:
        return needed.meta[_KEY]

    args, kwargs = fx.map_arg(node.args, recorded), fx.map_arg(node.kwargs, recorded)
    if node.op == "call_function":
        assert not isinstance(node.target, str)
        return node.target(*args, **kwargs)
    assert isinstance(node.target, str)
    owner, *rest = args
    return getattr(owner, node.target)(*rest, **kwargs)


def forget_originals(gm: fx.GraphModule) -> None:
    """Lets go of the weak references to weights by which the fake tensors of a graph were found.

    The graph's values are kept for reports, and with them all that made them. A weight with a weak reference cannot be
    exchanged for another, as quantised ones are when their model moves.
    """
    modes = {recorded.fake_mode for node in gm.graph.nodes if isinstance(recorded := node.meta.get(_KEY), FakeTensor)}
    for mode in modes:
        mode.fake_tensor_converter.meta_converter.describer.lookup_tensor.clear()
