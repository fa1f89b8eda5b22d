"""Which of a graph's inputs are denoised, by their form."""

from __future__ import annotations

import torch
from torch import fx

from . import values
from .dataflow import Dataflow


def latents(flow: Dataflow) -> list[fx.Node]:
    """The inputs that look like what is denoised: for each output those of its shape, or of the same but for one
    dimension (more channels go in than come out, say); where there are none, the largest input.
    """
    passed = {
        node: recorded
        for node in flow.order
        if node.op == "placeholder"
        and not values.is_weight(node)
        and (recorded := values.tensor(node)) is not None
        and (recorded.is_floating_point() or recorded.is_complex())
    }
    alike: list[fx.Node] = []
    for output in flow.needs(flow.order[-1]):
        differing = {node: _differing(node, output) for node in passed}
        least = min((count for count in differing.values() if count is not None), default=2)
        alike += [node for node in passed if differing[node] == least < 2]
    return alike or sorted(passed, key=lambda node: torch.Size(values.shape_hint(passed[node])).numel())[-1:]


def _differing(node: fx.Node, other: fx.Node) -> int | None:
    """In how many dimensions two tensors of one rank differ; None where the rank differs."""
    mine, theirs = values.size_text(node), values.size_text(other)
    if mine is None or theirs is None or len(mine) != len(theirs):
        return None
    return sum(a != b for a, b in zip(mine, theirs, strict=True))
