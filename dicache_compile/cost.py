"""How much of a graph's work lies in its deep region, and how much in stacks beside it that are not cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from .graph import values
from .graph.module_path import entries
from .plan import Inputs, Plan, Trunk

Work = Mapping[fx.Node, int]
_COMPARABLE = 0.5  # of the work of the trunk: a stack with this share of it is as heavy


@dataclass(frozen=True, slots=True)
class Uncut:
    """A list of blocks, as heavy as the trunk, that runs as a whole on every step."""

    owner: str  # "decoder.blocks"
    share: float  # of the floating-point operations, from 0 to 1
    again: bool  # whether it is the trunk's own list, in another call


def work_of(plan: Plan) -> Work:
    """The floating-point operations of each node; the parameters that it reads where operations cannot be counted."""
    try:
        work = _flops(plan.graph_module)
    except Exception:  # an operator that fake tensors or the counter cannot run: the share is a courtesy, not a result
        work = {}
    if any(not isinstance(flops, int) for flops in work.values()):  # sizes that depend on data
        work = {}
    return work if sum(work.values()) else _parameters(plan.inputs)


def skippable_share(plan: Plan, work: Work) -> float:
    """The share of the work that a step skips which reuses all sites, from 0 to 1."""
    total = sum(work.values())
    return sum(work.get(node, 0) for node in plan.deep) / total if total else 0.0


def left_whole(plan: Plan, work: Work) -> tuple[Uncut, ...]:
    """The stacks beside the trunk that are as heavy, the heaviest first."""
    blocks, deep = plan.partition.all_blocks, plan.deep
    trunk = {node for block in blocks for node in block.nodes}
    beside: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for node, operations in work.items():
        outermost = next(iter(entries(node)), None)
        if outermost is not None and node not in trunk and node not in deep:
            beside[outermost.owner][outermost.key] += operations
    total = sum(work.values())
    least = _COMPARABLE * sum(work.get(node, 0) for node in trunk)
    heavy = {owner: sum(parts.values()) for owner, parts in beside.items() if len(parts) > 1}
    owners = sorted((owner for owner in heavy if heavy[owner] >= least > 0), key=lambda owner: -heavy[owner])
    own = Trunk(blocks).owners
    return tuple(Uncut(owner, heavy[owner] / total, owner in own) for owner in owners)


def _flops(gm: fx.GraphModule) -> dict[fx.Node, int]:
    placeholders = gm.graph.find_nodes(op="placeholder")
    fakes = [values.value(node) for node in placeholders]
    mode = next(fake.fake_mode for fake in fakes if isinstance(fake, FakeTensor))
    with torch.no_grad(), mode, FlopCounterMode(display=False) as counter:
        interpreter = _Counting(gm, counter)
        interpreter.run(*fakes)
    return interpreter.counted


class _Counting(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(gm)
        self.counted: dict[fx.Node, int] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self.counted[n] = self._counter.get_total_flops() - before
        return result


def _parameters(inputs: Inputs) -> dict[fx.Node, int]:
    """The elements of the weights, each with the first node that reads it."""
    counted: dict[fx.Node, int] = {}
    for weight in inputs.weights:
        recorded = values.tensor(weight)
        if recorded is not None and weight.users:
            reader = next(iter(weight.users))
            counted[reader] = counted.get(reader, 0) + torch.Size(values.shape_hint(recorded)).numel()
    return counted
