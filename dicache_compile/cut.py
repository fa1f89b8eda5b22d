"""Takes one graph through all passes: the only place that knows their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .config import DiCacheConfig
from .errors import UnsupportedGraphError
from .passes.choose import find_partition
from .passes.collectives import why_not_alone
from .passes.dataflow import Dataflow
from .passes.inline import has_checkpoints, inline_calls
from .passes.inputs import find_inputs
from .passes.out_of_place import out_of_place
from .passes.sink import sink
from .passes.timestep import find_timestep, why_no_timestep
from .plan import Inputs, Partition
from .program import Program
from .write import write_program


@dataclass(frozen=True, slots=True)
class Cut:
    """A graph after all passes."""

    partition: Partition
    inputs: Inputs
    program: Program

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(self.partition.graph_module.graph.find_nodes(op="placeholder"))


def cut(gm: fx.GraphModule, examples: Sequence[Any], config: DiCacheConfig, told: bool = False) -> Cut:
    """Cuts a Dynamo graph; `gm` stays as it is. Raises UnsupportedGraphError with the reason where that cannot be.

    `told`: whether an earlier graph of the same call tells the timestep, should this one not have it.
    """
    if reason := why_not_inference(examples):
        raise UnsupportedGraphError("backend", reason)
    if torch.is_grad_enabled() and has_checkpoints(gm):
        raise UnsupportedGraphError(
            "backend", "the blocks run under gradient checkpointing; run the model under torch.no_grad()"
        )
    functional = out_of_place(inline_calls(gm))
    flow = Dataflow(functional.graph)
    parts = find_partition(functional, flow, config.trunk_owners(), config.probe_depth)
    if not config.ranks_agree and (reason := why_not_alone(parts)):
        raise UnsupportedGraphError("collectives", reason)
    flow = Dataflow(functional.graph)  # the partition may have added nodes
    inputs = find_inputs(flow, parts, config.timestep_input, told)
    if inputs.timestep is None and not told and not config.counts_steps():
        raise UnsupportedGraphError("inputs", why_no_timestep(functional, flow))
    parts = sink(flow, parts)  # after the inputs are told: what the probe reads of them is still a condition
    return Cut(parts, inputs, write_program(parts, inputs, config.rule()))


def told_timestep(gm: fx.GraphModule, config: DiCacheConfig) -> fx.Node | None:
    """The timestep among a graph's inputs, which later graphs of the same call may need; None if it is not there."""
    try:
        return find_timestep(Dataflow(gm.graph), config.timestep_input)
    except UnsupportedGraphError:  # the name is that of another graph's input
        return None


def why_not_inference(examples: Sequence[Any]) -> str | None:
    """The reason why a graph is for training, or None."""
    if torch.is_grad_enabled() and any(isinstance(e, torch.Tensor) and e.requires_grad for e in examples):
        return "gradients are enabled and an input or a weight requires them; run the model under torch.no_grad()"
    return None
