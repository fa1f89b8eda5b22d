"""Pass: inputs. Tells the timestep, the conditions and the weights among a graph's placeholders.

Requires: Dynamo's sources on the placeholders. Ensures: at most one timestep. A graph that begins after a graph break
may have none: the timestep was read before it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from ..errors import TimestepError
from ..graph import values
from ..graph.dataflow import Dataflow
from ..graph.input_names import named, passed
from ..graph.latents import latents
from ..plan import Inputs, Partition, Plan, Region
from .crossing import ABOVE
from .timestep import find_timestep, why_no_timestep
from .whole_model import MODEL


def tell_inputs(plan: Plan) -> Plan:
    """The same graph with what its placeholders are. Raises TimestepError where there is no timestep to go by."""
    asked, flow = plan.asked, Dataflow(plan.graph_module.graph)
    inputs = find_inputs(flow, plan.partition, asked.timestep_input, asked.told)
    if inputs.timestep is None and not asked.knows_time:
        raise TimestepError(why_no_timestep(plan.graph_module, flow))
    return dataclasses.replace(plan, told=inputs)


def find_inputs(flow: Dataflow, partition: Partition, timestep_input: str | None, told: bool = False) -> Inputs:
    """Sorts the placeholders of a graph. `told`: whether an earlier graph of the same call tells the timestep.

    Raises TimestepError if there is a `timestep_input` and no input or several of that name; where it is told,
    there may be none.
    """
    weights = tuple(n for n in flow.order if n.op == "placeholder" and values.is_weight(n))
    from_caller = passed(flow)
    elsewhere = told and timestep_input is not None and not named(from_caller, timestep_input)
    timestep = None if elsewhere else find_timestep(flow, timestep_input)
    looked_at = partition.nodes(*Region) if partition.parts == MODEL else partition.nodes(*ABOVE)
    reads = flow.upstream(looked_at)
    others = [n for n in from_caller if n is not timestep and n in reads and _is_summable(n)]
    denoised = _latents(flow, partition, others)
    conditions = tuple(n for n in others if n is not denoised and not _is_like_a_timestep(n, timestep, partition))
    return Inputs(timestep, conditions, weights, denoised)


def _latents(flow: Dataflow, partition: Partition, others: list[fx.Node]) -> fx.Node | None:
    """The input that is denoised, which changes on every step: what the stream is made from."""
    sources = [node for node in others if node in flow.upstream([partition.carried[0].x])]
    if len(sources) == 1:
        return sources[0]
    results = {values.size_text(node) for node in flow.needs(flow.order[-1])}
    alike = [node for node in sources if values.size_text(node) in results]
    if not alike:  # as of a model that also tells how sure it is, with as many channels more
        alike = [node for node in latents(flow) if node in sources and _rank(node) in map(_rank, results)]
    return alike[0] if len(alike) == 1 else None


def _rank(of: fx.Node | tuple[str, ...] | None) -> int | None:
    size = values.size_text(of) if isinstance(of, fx.Node) else of
    return len(size) if size is not None else None


def _is_like_a_timestep(node: fx.Node, timestep: fx.Node | None, partition: Partition) -> bool:
    """Whether an input is a number, or one for each sample, as a second step size or the strength of guidance is.

    In floating point: a whole number for each sample is a class, which is a condition.
    """
    recorded, size = values.tensor(node), values.size_text(node)
    if recorded is None or not recorded.is_floating_point():
        return False
    rows = (values.size_text(partition.carried[0].x) or ())[:1]
    return size in ((), ("1",), rows, (*rows, "1")) or (timestep is not None and size == values.size_text(timestep))


def _is_summable(node: fx.Node) -> bool:
    recorded = values.tensor(node)
    return recorded is not None and not recorded.is_complex() and recorded.layout == torch.strided
