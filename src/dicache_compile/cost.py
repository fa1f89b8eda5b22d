"""How much of a graph's work lies in its deep region."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from .passes import values
from .plan import Inputs, Partition, Region


def skippable_share(partition: Partition, inputs: Inputs) -> float:
    """The share of floating-point operations that a reused step skips, from 0 to 1.

    The share of parameters where operations cannot be counted.
    """
    try:
        work = _flops(partition.graph_module)
    except Exception:  # an operator that fake tensors or the counter cannot run: the share is a courtesy, not a result
        work = {}
    if any(not isinstance(flops, int) for flops in work.values()):  # sizes that depend on data
        work = {}
    if not sum(work.values()):
        work = _parameters(partition, inputs)
    total = sum(work.values())
    return sum(work.get(node, 0) for node in partition.nodes(Region.DEEP)) / total if total else 0.0


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


def _parameters(partition: Partition, inputs: Inputs) -> dict[fx.Node, int]:
    """The elements of the weights, each with the first node that reads it."""
    counted: dict[fx.Node, int] = {}
    for weight in inputs.weights:
        recorded = values.tensor(weight)
        if recorded is not None and weight.users:
            reader = next(iter(weight.users))
            counted[reader] = counted.get(reader, 0) + torch.Size(values.shape_hint(recorded)).numel()
    return counted
