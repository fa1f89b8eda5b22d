"""How much of a graph's work lies in its deep region, and how much in stacks beside it that are not cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from .graph import values
from .graph.module_path import entries
from .plan import Inputs, Plan, Region, Trunk
from .tracing import without_logs

Work = Mapping[fx.Node, int]
Kind = Literal["prologue", "block", "other", "epilogue"]
_COMPARABLE = 0.5  # of the work of the trunk: a stack with this share of it is as heavy


@dataclass(frozen=True, slots=True)
class Uncut:
    """A list of blocks, as heavy as the trunk, that runs as a whole on every step."""

    owner: str  # "decoder.blocks"
    share: float  # of the floating-point operations, from 0 to 1
    again: bool  # whether it is the trunk's own list, in another call


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model, with shares of all floating-point operations, from 0 to 1."""

    name: str  # of a block its module path
    kind: Kind  # "other": outside of the blocks, neither before nor after all sites: what only deep blocks need, say
    share: float  # that it has
    skippable: float  # that a step leaves out of it which reuses all sites
    by_rule: tuple[float, ...]  # that each rule's sites have of it; what is inside of another rule's counts for both


def work_of(plan: Plan) -> Work:
    """The floating-point operations of each node; the parameters that it reads where operations cannot be counted."""
    try:
        with without_logs():
            work = _flops(plan.graph_module)
    except Exception:  # an operator that fake tensors or the counter cannot run: the share is a courtesy, not a result
        work = {}
    if any(not isinstance(flops, int) for flops in work.values()):  # sizes that depend on data
        work = {}
    return work if sum(work.values()) else _parameters(plan.inputs)


def skippable_share(plan: Plan, work: Work) -> float:
    """The share of the work that a step skips which reuses all sites, from 0 to 1."""
    total, still = sum(work.values()), _still_run(plan)
    return sum(work.get(node, 0) * (1 - still.get(node, 0)) for node in plan.deep) / total if total else 0.0


def parts_of(plan: Plan, work: Work) -> tuple[Part, ...]:
    """The parts of a model in the order in which they run; their shares add up to 1, or all are 0.

    What is of the kind "other" comes after the blocks.
    """
    total = sum(work.values()) or 1
    deep, still = _deep_by_rule(plan), _still_run(plan)
    every = set().union(*deep)
    blocks = plan.partition.all_blocks
    inside = {node for block in blocks for node in block.nodes}
    around: dict[Kind, list[fx.Node]] = {"prologue": [], "other": [], "epilogue": []}
    for node in plan.graph_module.graph.nodes:
        if node not in inside:
            around[_kind(plan, node)].append(node)

    def part(name: str, kind: Kind, nodes: Iterable[fx.Node]) -> Part:
        def left_out(of: set[fx.Node]) -> float:
            return sum(work.get(node, 0) * (1 - still.get(node, 0)) for node in nodes if node in of) / total

        share = sum(work.get(node, 0) for node in nodes) / total
        return Part(name, kind, share, left_out(every), tuple(map(left_out, deep)))

    found = (
        part("prologue", "prologue", around["prologue"]),
        *(part(block.path, "block", block.nodes) for block in blocks),
        part("outside of the blocks", "other", around["other"]),
        part("epilogue", "epilogue", around["epilogue"]),
    )
    return tuple(one for one in found if one.share or one.kind != "other")


def _still_run(plan: Plan) -> dict[fx.Node, float]:
    """What a reused step runs of sites, by the share of the tokens on which it does."""
    found: dict[fx.Node, float] = {}
    by_token = [value.by_token for cut in plan.found for value in cut.carried if value.by_token is not None]
    for one in by_token:
        found |= dict.fromkeys(one.after, one.share)
    for one in by_token:
        found |= dict.fromkeys(one.before, 1.0)
    return found


def _deep_by_rule(plan: Plan) -> list[set[fx.Node]]:
    """What the sites of each rule are."""
    found: dict[int, set[fx.Node]] = {}
    for partition in plan.found:
        found.setdefault(partition.rule, set()).update(partition.nodes(Region.DEEP))
    return [found[rule] for rule in sorted(found)]


def _kind(plan: Plan, node: fx.Node) -> Kind:
    """Where a node outside of the blocks runs."""
    regions = {partition.regions.get(node, Region.PROLOGUE) for partition in plan.found}
    if regions == {Region.EPILOGUE}:
        return "epilogue"
    return "prologue" if regions <= {Region.PROLOGUE, Region.PROBE} else "other"


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
