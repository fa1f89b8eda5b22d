"""Whether a cut graph's steps can be captured: known from the graph, before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..cut import Cut
from ..errors import source_line
from ..graph import effects, operators, randomness, values
from ..graph.input_names import input_name
from ..ranks import backend_of

DEVICES = ("cuda",)  # types of devices that can capture


def why_not_capturable(found: Cut, examples: Mapping[str, object]) -> str | None:
    """The reason why a captured step would not compute what a called one does, or None.

    `examples` are what the graph was traced with, by placeholder.
    """
    device = found.program.slots[0].device
    if device.type not in DEVICES:
        return f"the model is on {device}, and captures need CUDA"
    timestep = found.inputs.timestep
    if timestep is not None and is_number(timestep, device):
        return f"the timestep {input_name(timestep)} is on the host, and each would need a capture of its own"
    inputs, nodes = found.placeholders, found.partitions[-1].regions
    weights = set(found.inputs.weights)
    reasons = itertools.chain(
        (_of_ranks(found, device),),
        (_of_input(node, examples[node.name], node in weights, device) for node in inputs),
        (_of_node(node, device) for node in nodes),
        (_of_write(node, target, inputs) for node in nodes for target in effects.written(node)),
    )
    return next(filter(None, reasons), None)


def _of_ranks(found: Cut, device: torch.device) -> str | None:
    if found.plan.ranks is None:
        return None
    backend = backend_of(found.plan.ranks, device)
    return None if backend == "nccl" else f"its ranks agree over {backend}, whose collectives need the host"


def _of_input(node: fx.Node, value: object, is_weight: bool, device: torch.device) -> str | None:
    if isinstance(value, (int, torch.SymInt)) or is_number(node, device):
        return None
    if not isinstance(value, torch.Tensor):
        return f"the input {input_name(node)} is a {type(value).__name__}, neither a tensor nor a whole number"
    if value.device != device:
        return f"the input {input_name(node)} is on {value.device} and the model on {device}"
    if not is_weight and is_traceable_wrapper_subclass(value):
        return f"the input {input_name(node)} is a {type(value).__name__}, which is made of other tensors"
    if not is_weight and (value.is_conj() or value.is_neg()):
        return f"the input {input_name(node)} is the lazy conjugate or negative of another tensor"
    return None


def is_number(node: fx.Node, device: torch.device) -> bool:
    """Whether a value is a number in the form of a tensor on the host: Dynamo makes these of floats, and reads them.

    A captured kernel has such a number in it, so a capture is made for each.
    """
    recorded = values.tensor(node)
    if recorded is None or recorded.device.type != "cpu" or recorded.dim():
        return False
    read = [operators.reads_on_host(user) for user in node.users]
    return device.type != "cpu" or (node.op == "placeholder" and bool(read) and all(read))


def _of_node(node: fx.Node, device: torch.device) -> str | None:
    if randomness.is_random(node):
        return f"it draws random numbers ({source_line(node)})"
    on_host = [needed for needed in node.all_input_nodes if is_number(needed, device)]
    recorded = values.tensor(node)
    if operators.reads_on_host(node) and not on_host:
        return f"it reads a value on the host ({source_line(node)})"
    if recorded is None or node.op == "get_attr" or is_number(node, device):
        return None
    if recorded.device != device:
        return f"it computes on {recorded.device} and not on {device} ({source_line(node)})"
    if operators.may_move(node) and on_host:
        return f"it copies from the host ({source_line(node)})"
    if any(values.is_data_dependent(str(size)) for size in recorded.shape):
        return f"the size of a result depends on data ({source_line(node)})"
    return None


def _of_write(node: fx.Node, target: fx.Node, inputs: Sequence[fx.Node]) -> str | None:
    """A write to what a caller passed would land in a copy of it, and one to a buffer would be done in warm-up too."""
    memories = values.storages(target)
    written = next((passed for passed in inputs if values.storages(passed) & memories), None)
    return f"it writes to its input {input_name(written)} ({source_line(node)})" if written is not None else None
