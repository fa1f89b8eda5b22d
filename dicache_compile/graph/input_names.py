"""What a graph's inputs are called, as the caller knows them."""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from . import values
from .dataflow import Dataflow

_STORES = {"_modules", "_parameters", "_buffers"}  # where a module keeps what it is asked for by name


def input_name(node: fx.Node) -> str:
    """What the caller calls an input: `L['kwargs']['timestep']` -> `timestep`, `L['ids'][0]` -> `ids.0`.

    A weight has its path in the model: `self.blocks.0.weight`. What a graph break left on the stack keeps its place
    there: `___stack0.1.timestep`.
    """
    return name_of(getattr(node, "_dynamo_source", None)) or node.name


def name_of(source: Any) -> str:
    """The same for one of Dynamo's sources; "" where it has no name."""
    text = getattr(source, "name", None)
    text = text() if callable(text) else text
    tokens = [token.strip("'") for token in re.findall(r"'[^']*'|\d+|(?<=\.)\w+", text or "")]
    tokens = [token for token in tokens if token not in _STORES]
    return ".".join(tokens[1:] if tokens[:1] in (["kwargs"], ["args"]) and len(tokens) > 1 else tokens)


def last_word(name: str) -> str:
    """The last part of an input's path that is a word: `___stack0.1.timestep` -> `timestep`, `times.0` -> `times`."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), "")


def named(nodes: list[fx.Node], wanted: str) -> list[fx.Node]:
    """The inputs that a user may mean by `wanted`: the one with this path, else those whose paths end in it."""
    exact = [node for node in nodes if input_name(node) == wanted]
    ending = [node for node in nodes if input_name(node).endswith(f".{wanted}")]
    return exact[:1] or ending or [node for node in nodes if last_word(input_name(node)) == wanted]


def passed(flow: Dataflow) -> list[fx.Node]:
    """The tensors that the caller passes, in order."""
    placeholders = (node for node in flow.order if node.op == "placeholder")
    return [node for node in placeholders if not values.is_weight(node) and values.tensor(node) is not None]


def tensor_inputs(flow: Dataflow) -> str:
    """Their names, for messages."""
    return ", ".join(map(input_name, passed(flow))) or "none"
