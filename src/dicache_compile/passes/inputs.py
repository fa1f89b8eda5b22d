"""Pass: inputs. Tells the timestep, the conditions and the weights among a graph's placeholders.

Requires: Dynamo's sources on the placeholders. Ensures: at most one timestep. A graph that begins after a graph break
may have none: the timestep was read before it.
Not handled: a timestep that is a Python number (Dynamo makes a constant of it, and compiles again for each).
"""

from __future__ import annotations

import re

import torch
from torch import fx

from ..errors import UnsupportedGraphError
from ..plan import Inputs, Partition, Region
from . import effects, values
from .dataflow import Dataflow

_TIMESTEP = re.compile(r"(?:^|_)(?:time_?steps?|time|t|sigmas?|noise_levels?|tsteps?)$")
_WAVES = {"sin", "cos"}
_STORES = {"_modules", "_parameters", "_buffers"}  # where a module keeps what it is asked for by name


def find_inputs(flow: Dataflow, partition: Partition, timestep_input: str | None, told: bool = False) -> Inputs:
    """Sorts the placeholders of a graph. `told`: whether an earlier graph of the same call tells the timestep.

    Raises UnsupportedGraphError if there is a `timestep_input`, no input of that name, and nobody tells it.
    """
    weights = tuple(n for n in flow.order if n.op == "placeholder" and values.is_weight(n))
    passed = _passed(flow)
    names = {input_name(node) for node in passed}
    elsewhere = told and timestep_input is not None and timestep_input not in names
    timestep = None if elsewhere else find_timestep(flow, timestep_input)
    reads = flow.upstream(partition.nodes(Region.PROLOGUE, Region.PROBE))
    others = [n for n in passed if n is not timestep and n in reads and _is_summable(n)]
    latents = _latents(flow, partition, others)
    conditions = tuple(n for n in others if n is not latents)
    return Inputs(timestep, conditions, weights)


def input_name(node: fx.Node) -> str:
    """What the caller calls an input: `L['kwargs']['timestep']` -> `timestep`, `L['ids'][0]` -> `ids.0`.

    A weight has its path in the model: `self.blocks.0.weight`.
    """
    source = getattr(node, "_dynamo_source", None)
    text = getattr(source, "name", None)
    text = text() if callable(text) else text
    if not text:
        return node.name
    tokens = [token.strip("'") for token in re.findall(r"'[^']*'|\d+|(?<=\.)\w+", text)]
    tokens = [token for token in tokens if token not in _STORES]
    return ".".join(tokens[1:] if tokens[:1] in (["kwargs"], ["args"]) and len(tokens) > 1 else tokens) or node.name


def find_timestep(flow: Dataflow, wanted: str | None) -> fx.Node | None:
    """The timestep among a graph's inputs, if it is there; `wanted` is its name.

    Raises UnsupportedGraphError if there is no input of that name.
    """
    passed = _passed(flow)
    if wanted is not None:
        found = [node for node in passed if input_name(node) == wanted]
        if not found:
            raise UnsupportedGraphError(
                "inputs", f"no tensor input named {wanted!r}; the tensor inputs are: {tensor_inputs(flow)}"
            )
        return found[0]
    alike = [node for node in passed if _TIMESTEP.search(input_name(node).lower())]
    if len(alike) == 1:
        return alike[0]
    # By what becomes of it: a timestep is a number for each sample (or token) that is turned into waves.
    waves = {node: _steps_to_waves(flow, node) for node in (alike or passed) if _is_small(node)}
    near = {node: steps for node, steps in waves.items() if steps is not None}
    # Of several names the plainest: "timestep" rather than "target_timestep".
    return min(near, key=lambda node: (len(input_name(node)) if alike else 0, near[node]), default=None)


def tensor_inputs(flow: Dataflow) -> str:
    """The names of the tensors that the caller passes, for messages."""
    return ", ".join(input_name(node) for node in _passed(flow)) or "none"


def _passed(flow: Dataflow) -> list[fx.Node]:
    placeholders = (node for node in flow.order if node.op == "placeholder")
    return [node for node in placeholders if not values.is_weight(node) and values.tensor(node) is not None]


def _latents(flow: Dataflow, partition: Partition, passed: list[fx.Node]) -> fx.Node | None:
    """The input that is denoised, which changes on every step: what the stream is made from."""
    sources = [node for node in passed if node in flow.upstream([partition.streams[0].x])]
    if len(sources) == 1:
        return sources[0]
    results = {values.size_text(node) for node in flow.needs(flow.order[-1])}
    alike = [node for node in sources if values.size_text(node) in results]
    return alike[0] if len(alike) == 1 else None


def _steps_to_waves(flow: Dataflow, node: fx.Node) -> int | None:
    """How many operations lie between an input and the first sine or cosine of it; None if there is none near."""
    front, seen = {node}, {node}
    for steps in range(12):
        if any(effects.name(n) in _WAVES for n in front):
            return steps
        front = {user for n in front for user in flow.needed_by(n)} - seen
        seen |= front
    return None


def _is_small(node: fx.Node) -> bool:
    recorded = values.tensor(node)
    return recorded is not None and recorded.dim() <= 2 and recorded.dtype is not torch.bool


def _is_summable(node: fx.Node) -> bool:
    recorded = values.tensor(node)
    return recorded is not None and not recorded.is_complex() and recorded.layout == torch.strided
