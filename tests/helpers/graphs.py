"""Dynamo graphs of small modules, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from dicache_compile.graph import operators
from dicache_compile.plan import Partition, Trunk


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[fx.GraphModule, list[Any]]:
    """The one graph that Dynamo makes of a call, and what it was traced with."""
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def capture(gm: fx.GraphModule, examples: Sequence[Any]) -> Any:
        found.append((gm, list(examples)))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=capture, fullgraph=True)(*args, **kwargs)
    assert len(found) == 1
    return found[0]


class Mixer(nn.Module):
    """The smallest thing that mixes tokens and is shifted by the timestep: x + time * (x x^T) x."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale = time.sin()
        return x + torch.matmul(torch.matmul(x, x.mT), x) * scale


class Tiny(nn.Module):
    """Prologue, three mixers, epilogue."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixer() for _ in range(depth))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = hidden_states.relu()
        for block in self.blocks:
            x = block(x, timestep)
        return x.tanh() + timestep.exp()


def tiny_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 4), torch.ones(())


def line(node: fx.Node) -> str:
    """`matmul_1 = matmul(x, getattr_1)`."""
    arguments = [*map(_text, node.args), *(f"{key}={_text(item)}" for key, item in node.kwargs.items())]
    return f"{node.name} = {operators.name(node)}({', '.join(arguments)})"


def _text(argument: Any) -> str:
    if isinstance(argument, (tuple, list)):
        return "[" + ", ".join(map(_text, argument)) + "]"
    return argument.name if isinstance(argument, fx.Node) else str(argument)


def trunk_text(trunk: Trunk) -> str:
    return "\n".join(f"{block.path}: {' '.join(node.name for node in block.nodes)}" for block in trunk.blocks)


def partition_text(partition: Partition) -> str:
    """Every node after the name of its region, the streams, and what crosses."""
    lines = [
        f"{partition.regions[node].name.lower():<8}  {line(node)}"
        for node in partition.graph_module.graph.nodes
        if node in partition.regions
    ]
    lines += [f"stream    x={s.x.name} h={s.h.name} y={s.y.name}" for s in partition.carried]
    return "\n".join([*lines, f"crossing  {' '.join(node.name for node in partition.crossing)}"])


def graph_text(graph: fx.Graph) -> str:
    return "\n".join(line(node) for node in graph.nodes if node.op in ("call_function", "call_method"))
