"""The passes in their order, and what runs them: it names the pass in an error, times each, and can check it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import UnsupportedGraphError
from ..plan import Plan
from .by_token import by_token
from .choose import cut_trunk
from .collectives import find_ranks
from .inline import inline
from .inputs import tell_inputs
from .out_of_place import out_of_place
from .sink import sink

Pass: TypeAlias = Callable[[Plan], Plan]

# `sink` comes after the inputs are told: what the probe reads of them is still a condition. `by_token` comes after it,
# as it needs all that is left out with a site.
PASSES: tuple[Pass, ...] = (inline, out_of_place, cut_trunk, find_ranks, tell_inputs, sink, by_token)


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass did."""

    name: str
    seconds: float
    before: Plan
    after: Plan


def run_passes(plan: Plan, watch: Callable[[Passed], None] | None = None) -> Plan:
    """A graph after all passes; `watch` is told of each. No pass changes what it was given.

    Raises UnsupportedGraphError, with the name of the pass, where one refuses.
    """
    for one in PASSES:
        started = time.perf_counter()
        try:
            after = one(plan)
        except UnsupportedGraphError as error:
            error.stage = one.__name__
            raise
        if watch is not None:
            watch(Passed(one.__name__, time.perf_counter() - started, plan, after))
        plan = after
    return plan


def check_plan(plan: Plan) -> None:
    """Raises AssertionError where a plan is not what passes may give: for tests, and for who looks for a fault."""
    graph = plan.graph_module.graph
    graph.lint()
    nodes = set(graph.nodes)
    for found in plan.found:
        regions = found.regions
        assert regions.keys() <= nodes, "a region is given to a node of another graph"
        for node in graph.nodes:
            for needed in node.all_input_nodes:
                if node in regions and needed in regions:
                    ordered = regions[needed].value <= regions[node].value or found.in_turns
                    assert ordered, f"{node.name} reads {needed.name} of a later region"
        for carried in found.carried:
            assert {carried.x, carried.h, carried.y} <= nodes, "what is carried is of another graph"
