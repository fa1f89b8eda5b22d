"""A cut graph in pieces that are called by hand: the whole with what it carries, what is above the cut, and below."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..cut import Cut
from ..graph import effects, values
from ..graph.copying import graph_module
from ..graph.dataflow import Dataflow
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
    def y_dtypes(self) -> tuple[torch.dtype, ...]:
        """Of each carried value where it leaves the site."""
        found = [values.tensor(one.y) for one in self.carried]
        return tuple(recorded.dtype for recorded in found if recorded is not None)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each carried value."""
        found = [values.tensor(one.y) for one in self.carried]
        return tuple(values.shape_hint(recorded)[-1] for recorded in found if recorded is not None)

    @property
    def carried(self) -> tuple[Carried, ...]:
        return self.cut.partition.carried


def taps(cut: Cut) -> Taps:
    """The pieces of a cut graph with one cut. They compute what the graph does, in the same order."""
    source, carried = cut.plan.graph_module, cut.partition.carried
    xs, hs, ys = ([getattr(value, name) for value in carried] for name in ("x", "h", "y"))
    places = {node: place for place, node in enumerate(cut.placeholders)}
    inputs, flow = cut.inputs, Dataflow(source.graph)
    (returned,) = source.graph.find_nodes(op="output")
    results = returned.all_input_nodes
    return Taps(
        cut,
        whole=_piece(
            flow,
            source,
            {},
            lambda outputs, copies: (outputs, *(copies[node] for node in (*xs, *hs, *ys))),
            [*results, *xs, *hs, *ys],
        ),
        above=_piece(flow, source, {}, lambda _, copies: tuple(copies[node] for node in (*xs, *hs)), [*xs, *hs]),
        below=_piece(flow, source, dict.fromkeys(ys), lambda outputs, _: outputs, results),
        latents=places.get(inputs.latents) if inputs.latents is not None else None,
        timestep=places.get(inputs.timestep) if inputs.timestep is not None else None,
        weights=frozenset(places[node] for node in inputs.weights),
    )


def _piece(
    flow: Dataflow,
    source: fx.GraphModule,
    given: dict[fx.Node, Any],
    result: Callable[[Any, dict[fx.Node, fx.Node]], Any],
    told: Sequence[fx.Node],
) -> fx.GraphModule:
    """A copy of what some values (`told`) need of a graph. It takes those of other nodes as further inputs, and returns
    something else.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in source.graph.find_nodes(op="placeholder"):
        copies[node] = graph.placeholder(node.name)
    for place, node in enumerate(given):
        copies[node] = graph.placeholder(f"given_{place}")
    needed = _needed(flow, [*told, *filter(effects.switches, flow.order)], given)
    for node in flow.order:
        if node.op == "output":
            graph.output(result(fx.node.map_arg(node.args[0], copies.get), copies))
        elif node not in copies and node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta.pop("grapharg", None)
    return graph_module(source, graph, source)


def _needed(flow: Dataflow, told: Iterable[fx.Node], given: Container[fx.Node]) -> set[fx.Node]:
    """What runs before some nodes, but for what only given ones need. A write that nobody reads is not among it, and
    would bring all that it writes with it.
    """
    seen: set[fx.Node] = set()
    pending = list(told)
    while pending:
        node = pending.pop()
        if node not in seen and node not in given:
            seen.add(node)
            pending += flow.needs(node)
    return seen
