"""What a function does to each row of a batch, as a batch of its own: `torch.vmap`, recorded operator by operator.

A function sees one row: x is [1, T, C], and a counter has shape (). In the graph nothing tells of it: what is recorded
does all rows at once. Each row's part of a sum is added up in the same order, whatever the other rows hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from .constants import PlacesOnDevice
from .leaves import map_leaves
from .trial import method_name

Examples = Mapping[fx.Node, tuple[Tensor, bool]]  # of a node: a fake value; whether it is [B, what a row sees]


@dataclass(frozen=True, slots=True)
class Operations:
    """What a function does."""

    graph: fx.GraphModule  # takes tensors, and gives a list of them
    shape: Any  # what the function gives, with a `_Place` for each of these
    function: object  # itself, so that no other one takes its identity while it is known by that

    def result(self, tensors: Sequence[Any]) -> Any:
        """What the function gives, with these for its tensors."""
        return map_leaves(self.shape, lambda leaf: tensors[leaf.place] if isinstance(leaf, _Place) else leaf)


def operations(
    function: Callable[..., Any], arguments: Sequence[Any], examples: Examples, device: torch.device
) -> Operations:
    """What a function does to these arguments, in which nodes stand for tensors. Raises ValueError that names a method
    of a gate or an estimator which cannot be run so.
    """
    shape: list[Any] = []

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        known = dict(zip(examples, tensors, strict=True))
        with device, PlacesOnDevice():
            result = function(*(map_leaves(one, lambda leaf: _known(leaf, known)) for one in arguments))
        leaves: list[Tensor] = []
        shape[:] = [map_leaves(result, lambda leaf: _placed(leaf, leaves))]
        return tuple(leaves)

    dims = tuple(0 if by_row else None for _, by_row in examples.values())
    try:
        graph = _recorded(torch.vmap(run, dims), [fake for fake, _ in examples.values()])
    except Exception as error:
        if not inspect.ismethod(function):
            raise
        what = f"{method_name(function)} cannot be run for each row of a batch alone (rows='independent')"
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error
    return Operations(graph, shape[0], function)


def nodes_of(arguments: Sequence[Any]) -> list[fx.Node]:
    """The nodes among arguments and what these hold, each once."""
    found: dict[fx.Node, None] = {}
    map_leaves(tuple(arguments), lambda leaf: found.setdefault(leaf) if isinstance(leaf, fx.Node) else None)
    return list(found)


def _recorded(function: Callable[..., Any], examples: Sequence[Tensor]) -> fx.GraphModule:
    """What a function does to tensors."""
    mode = next(example.fake_mode for example in examples if isinstance(example, FakeTensor))
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True  # tensors that a gate keeps
    try:
        with mode, torch.no_grad():
            # Each of its own: by what tensor it is, an argument is known while it is traced.
            traced = make_fx(function)(*map(_another, examples))
    finally:
        mode.allow_non_fake_inputs = before
    traced.graph.eliminate_dead_code()
    return traced


def _another(fake: Tensor) -> Tensor:
    return torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype, device=fake.device)


class _Place:
    """Where a tensor stands among those that a function gives; no container, which would be gone through."""

    def __init__(self, place: int) -> None:
        self.place = place


def _known(leaf: Any, tensors: Mapping[fx.Node, Tensor]) -> Any:
    return tensors[leaf] if isinstance(leaf, fx.Node) else leaf


def _placed(leaf: Any, leaves: list[Tensor]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaves.append(leaf)
    return _Place(len(leaves) - 1)
