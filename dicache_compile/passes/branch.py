"""Pass: branch. Writes the graphs of a step from a partition, a gate and an estimator.

    P: inputs, state          -> reuse, crossing values       prologue + probe + statistics + decision
    D: crossing values, state -> outputs                      deep + new anchor + epilogue
    R: crossing values, state -> outputs                      estimate + epilogue

and the same step as one functional graph with one `torch.ops.higher_order.cond`. The epilogue stands in both D and R,
so nothing has to be merged after the branch.

Requires: a partition whose regions never read backwards. Ensures: the pieces and the single graph compute the same.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims

from ..plan import Branch, Inputs, Partition, Piece, Region
from . import values
from .emit import Emitter, write_back
from .measure import Policy
from .slots import Updates
from .step import Step
from .strides import is_permuted

__all__ = ["Policy", "build_branch"]


def build_branch(partition: Partition, inputs: Inputs, policy: Policy) -> Branch:
    """The branch of a partition, in both forms."""
    step = Step(partition, inputs, policy)
    slots = step.slots()  # first, because it refuses slots that clash
    step.try_policy()
    return Branch(_probe(step), _deep(step), _estimate(step), slots, partial(_single, step))


def _probe(step: Step) -> Piece:
    emitter = step.emitter()
    reuse, gammas, updates = step.probe(emitter)
    crossing = {node.name: emitter.read(node) for node in step.partition.crossing}
    crossing |= {f"gamma.{place}": gamma for place, gamma in enumerate(gammas)}
    write_back(emitter, updates)
    return Piece(emitter.module((reuse, *crossing.values())), tuple(emitter.inputs), ("reuse", *crossing))


def _deep(step: Step) -> Piece:
    emitter = step.emitter()
    outputs, updates = step.deep(emitter)
    write_back(emitter, updates)
    return _piece(emitter, outputs)


def _estimate(step: Step) -> Piece:
    emitter = step.emitter()
    return _piece(emitter, step.estimate(emitter))


def _piece(emitter: Emitter, outputs: Sequence[object]) -> Piece:
    return Piece(emitter.module(outputs), tuple(emitter.inputs), tuple(f"output.{i}" for i in range(len(outputs))))


def _single(step: Step) -> Piece:
    """The step with one `cond`. Each branch takes the same operands and returns fresh tensors of the same kind."""
    outer = step.emitter()
    reuse, gammas, updates = step.probe(outer)

    # Once to see what the branches read, once more with all of it as the operands of both.
    trial, other = step.emitter(), step.emitter()
    written = tuple(step.deep(trial)[1])
    step.estimate(other)
    names = tuple(dict.fromkeys([*trial.inputs, *other.inputs, *(f"state.{name}" for name in written)]))
    deep, estimate = step.emitter(names), step.emitter(names)

    # What does not depend on the branch stays outside of it: a branch must not return an operand.
    chosen = [i for i, node in enumerate(step.outputs()) if _depends_on_branch(step, node)]
    deep_outputs, deep_updates = step.deep(deep)
    estimate_outputs = step.estimate(estimate)
    kept: Updates = {name: estimate.input(f"state.{name}") for name in written}
    branches = {
        "deep_branch": _branch(deep, [deep_outputs[i] for i in chosen], _functional(step, deep, deep_updates)),
        "estimate_branch": _branch(estimate, [estimate_outputs[i] for i in chosen], _functional(step, estimate, kept)),
    }

    nodes = {node.name: node for node in step.partition.graph_module.graph.nodes}
    known = {f"gamma.{i}": gamma for i, gamma in enumerate(gammas)}
    known |= {f"state.{name}": node for name, node in updates.items()}
    known |= {name: outer.read(nodes[name]) for name in names if name in nodes}
    operands = [
        _as_recorded(outer, nodes.get(name), known[name]) if name in known else outer.input(name) for name in names
    ]
    modules = [outer.graph.get_attr(name) for name in ("estimate_branch", "deep_branch")]
    result = outer.graph.call_function(torch.ops.higher_order.cond, (reuse, *modules, tuple(operands)))
    parts = [outer.graph.call_function(operator.getitem, (result, i)) for i in range(len(chosen) + len(written))]

    of_branch = dict(zip(chosen, parts, strict=False))
    outputs = [
        of_branch[i] if i in of_branch else outer.read(node) if isinstance(node, fx.Node) else node
        for i, node in enumerate(step.outputs())
    ]
    state = _functional(step, outer, {name: node for name, node in updates.items() if name not in written})
    state |= dict(zip(written, parts[len(chosen) :], strict=True))
    module = outer.module((*outputs, *state.values()), attributes=branches)
    named = (*(f"output.{i}" for i in range(len(outputs))), *(f"state.{name}" for name in state))
    return Piece(module, tuple(outer.inputs), named)


def _depends_on_branch(step: Step, node: object) -> bool:
    return isinstance(node, fx.Node) and step.partition.regions.get(node) in (Region.DEEP, Region.EPILOGUE)


def _branch(emitter: Emitter, outputs: Sequence[Any], state: Updates) -> fx.GraphModule:
    return emitter.module((*(_fresh(emitter, output) for output in outputs), *state.values()))


def _functional(step: Step, emitter: Emitter, updates: Updates) -> Updates:
    """New values as fresh tensors in the dtype of their slots."""
    dtypes = {slot.name: slot.dtype for slot in step.slots()}
    cast = {name: emitter.graph.call_method("to", (node, dtypes[name])) for name, node in updates.items()}
    return {name: _fresh(emitter, node) for name, node in cast.items()}


def _as_recorded(emitter: Emitter, node: fx.Node | None, operand: fx.Node) -> fx.Node:
    """An operand that lies in memory as the branches expect. Inductor may lay a value out as it likes, and does not
    see to what the branches of a `cond` were traced with.
    """
    recorded = values.tensor(node) if node is not None else None
    if recorded is None or not is_permuted(recorded):
        return operand
    strides = emitter.graph.call_method("stride", (operand,))
    return emitter.graph.call_function(inductor_prims.force_stride_order, (operand, strides))


def _fresh(emitter: Emitter, value: Any) -> fx.Node:
    # Both branches must agree in strides: state and estimates are contiguous, what is deep may lie in any order.
    return emitter.graph.call_method("clone", (value,), {"memory_format": torch.contiguous_format})
