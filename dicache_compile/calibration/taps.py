"""A cut graph in pieces that are called by hand: the whole with what it carries, what is above the cut, and below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..cut import Cut
from ..graph import values
from ..graph.copying import graph_module
from ..plan import Carried

Inputs = Sequence[Any]  # of a graph, in the order of its placeholders


@dataclass(frozen=True)
class Taps:
    """One graph of a model."""

    cut: Cut
    whole: Callable[..., tuple[Any, ...]]  # inputs to (outputs, x, h and y of each carried value)
    above: Callable[..., tuple[Tensor, ...]]  # inputs to (x and h of each carried value)
    below: Callable[..., tuple[Any, ...]]  # inputs, then the y of each carried value, to outputs
    latents: int | None  # the place of the denoised input
    timestep: int | None  # and of the timestep
    weights: frozenset[int]  # and of the model's own tensors

    @property
    def y_dtype(self) -> torch.dtype:
        """Of the first carried value where it leaves the site."""
        recorded = values.tensor(self.carried[0].y)
        assert recorded is not None
        return recorded.dtype

    @property
    def carried(self) -> tuple[Carried, ...]:
        return self.cut.partition.carried


def taps(cut: Cut) -> Taps:
    """The pieces of a cut graph with one cut. They compute what the graph does, in the same order."""
    source, carried = cut.plan.graph_module, cut.partition.carried
    xs, hs, ys = ([getattr(value, name) for value in carried] for name in ("x", "h", "y"))
    places = {node: place for place, node in enumerate(cut.placeholders)}
    inputs = cut.inputs
    return Taps(
        cut,
        whole=_piece(source, {}, lambda outputs, copies: (outputs, *(copies[node] for node in (*xs, *hs, *ys)))),
        above=_piece(source, {}, lambda outputs, copies: tuple(copies[node] for node in (*xs, *hs))),
        below=_piece(source, dict.fromkeys(ys), lambda outputs, copies: outputs),
        latents=places.get(inputs.latents) if inputs.latents is not None else None,
        timestep=places.get(inputs.timestep) if inputs.timestep is not None else None,
        weights=frozenset(places[node] for node in inputs.weights),
    )


def _piece(
    source: fx.GraphModule, given: dict[fx.Node, Any], result: Callable[[Any, dict[fx.Node, fx.Node]], Any]
) -> fx.GraphModule:
    """A copy of a graph that takes the values of some nodes as further inputs, and returns something else."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    nodes = list(source.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.placeholder(node.name)
    for place, node in enumerate(given):
        copies[node] = graph.placeholder(f"given_{place}")
    for node in nodes:
        if node.op == "output":
            graph.output(result(fx.node.map_arg(node.args[0], copies.__getitem__), copies))
        elif node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta.pop("grapharg", None)
    graph.eliminate_dead_code()
    return graph_module(source, graph, source)
