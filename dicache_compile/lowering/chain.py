"""Runs the compiled stretches of a piece one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..program import Piece

Callee = Callable[..., Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Link:
    """A stretch, with the places of what it takes and gives."""

    run: Callee
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    over: tuple[int, ...]  # what nothing reads any more: its memory is free for what comes


@dataclass(frozen=True, slots=True)
class Chain:
    """Takes a piece's inputs in order and returns its outputs in order."""

    links: tuple[Link, ...]
    given: int  # how many values there are besides the inputs
    outputs: tuple[tuple[int, Any], ...]  # (the place of each, nothing) or (-1, what is no tensor)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        held: list[Any] = [*inputs, *(None,) * self.given]
        for link in self.links:
            for place, result in zip(link.gives, link.run(*[held[place] for place in link.reads]), strict=True):
                held[place] = result
            for place in link.over:
                held[place] = None
        return [held[place] if place >= 0 else constant for place, constant in self.outputs]


def chain(gm: fx.GraphModule, stretches: Sequence[Piece], compiled: Sequence[Callee]) -> Chain:
    """`stretches` of the graph `gm`, with each one compiled."""
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    inputs = len(names)
    names += [value.name for stretch in stretches for value in stretch.gives]
    places = {name: place for place, name in enumerate(names)}
    (returned,) = gm.graph.find_nodes(op="output")
    outputs = tuple((places[one.name], None) if isinstance(one, fx.Node) else (-1, one) for one in returned.args[0])
    kept = {place for place, _ in outputs}
    last = {places[value.name]: number for number, stretch in enumerate(stretches) for value in stretch.reads}
    links = []
    for number, (stretch, run) in enumerate(zip(stretches, compiled, strict=True)):
        reads, gives = (tuple(places[value.name] for value in of) for of in (stretch.reads, stretch.gives))
        over = [place for place in reads if last[place] == number and place >= inputs and place not in kept]
        links.append(Link(run, reads, gives, tuple(over)))
    return Chain(tuple(links), len(names) - inputs, outputs)
