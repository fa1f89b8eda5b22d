"""Which nodes draw random numbers: by what PyTorch says of its operators, or by running a node on fake tensors.

An operator that may draw has the tag `nondeterministic_seeded`, and its arguments say whether it does: dropout with a
probability of 0, or out of training, draws nothing. A function that is written in Python is run as it was traced, and
the operators that it calls are looked at.
Not handled: random numbers of operators that do not have the tag, as a user's own.
"""

from __future__ import annotations

import types
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import fx

from . import operators, values
from .observed import Called, called, subgraphs

_KNOWN = "dicache_random"  # in a node's metadata, once it has been looked at
_PROBABILITIES = ("p", "dropout_p", "dropout")
_SWITCHES = ("train", "training")


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers; dropout counts only where it is on."""
    if node.op not in ("call_function", "call_method"):
        return False
    if _KNOWN not in node.meta:
        node.meta[_KNOWN] = _draws(node)
    return bool(node.meta[_KNOWN])


def _draws(node: fx.Node) -> bool:
    if graphs := subgraphs(node):
        return any(is_random(inner) for part in graphs for inner in part.graph.nodes)
    may = [overload for overload in operators.meant(node) if torch.Tag.nondeterministic_seeded in overload.tags]
    if not isinstance(node.target, types.FunctionType):
        # Its arguments are the operator's own; a number among them may be one that changes between calls.
        if not any(_drew(Called(overload, node.args, node.kwargs)) for overload in may):
            return False
        return _drew_when_run(node, True)
    key = node.target, _form(node.args), _form(node.kwargs)
    if key not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = _drew_when_run(node, bool(may))
    return _known[key]


def _drew_when_run(node: fx.Node, may: bool) -> bool:
    try:
        return any(map(_drew, called(node)))
    except Exception:  # what cannot be run once more is as random as its operator may be
        return may


_known: dict[Hashable, bool] = {}  # functions that were run with arguments of a form, and whether they drew
_MOST_KNOWN = 4096


def _form(argument: Any) -> Hashable:
    """An argument but for the sizes and places of tensors."""
    if isinstance(argument, (tuple, list)):
        return tuple(map(_form, argument))
    if isinstance(argument, Mapping):
        return tuple((name, _form(item)) for name, item in argument.items())
    if isinstance(argument, fx.Node):
        recorded = values.value(argument)
        if isinstance(recorded, torch.Tensor):
            return type(recorded), recorded.dtype, recorded.dim(), recorded.device
        return str(recorded)
    return argument if isinstance(argument, (int, float, str, bool, type(None))) else str(argument)


def _drew(call: Called) -> bool:
    """Whether an operator drew random numbers with its arguments."""
    if torch.Tag.nondeterministic_seeded not in call.operator.tags:
        return False
    arguments = call.operator._schema.arguments
    passed = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    passed |= dict(zip((argument.name for argument in arguments), call.args, strict=False)) | dict(call.kwargs)
    off = any(name in passed and passed[name] == 0 for name in _PROBABILITIES)
    return not off and not any(passed.get(name) is False for name in _SWITCHES)
