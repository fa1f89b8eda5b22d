"""What Dynamo says of a node's value, read in one place and without adding guards."""

from __future__ import annotations

import re

import torch
from torch import fx

_COUNTED = re.compile(r"(?=.*\bu\d)\w+( \+ \w+)*")  # u3 or u3 + 23, as of two joined sequences
_DATA_DEPENDENT = re.compile(r"\bu\d+\b")


def value(node: fx.Node) -> object:
    """The fake value that Dynamo recorded for a node: a tensor, a SymInt, a tuple of them, or None."""
    return node.meta.get("example_value")


def tensor(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor of a node, or None where its value is not one tensor."""
    recorded = value(node)
    return recorded if isinstance(recorded, torch.Tensor) else None


def size_text(node: fx.Node) -> tuple[str, ...] | None:
    """A tensor's sizes as text: symbolic sizes compare by their expression, and comparing them adds no guard."""
    recorded = tensor(node)
    return None if recorded is None else tuple(str(size) for size in recorded.shape)


def same_size(node: fx.Node, other: fx.Node) -> bool:
    """Whether two tensors have the same sizes, as far as can be known before they run.

    A size that depends on data (u0: how many tokens of a prompt are not padding) has another symbol wherever it is
    counted anew, and may equal any other but 1. One that is computed from such sizes, but for a sum, is another.
    """
    mine, theirs = size_text(node), size_text(other)
    if mine is None or theirs is None:
        return False
    return mine == theirs or (
        len(mine) == len(theirs)
        and all(a == b or _may_equal(a, b) or _may_equal(b, a) for a, b in zip(mine, theirs, strict=True))
    )


def _may_equal(counted: str, other: str) -> bool:
    if _COUNTED.fullmatch(counted) is None or other == "1":
        return False
    return not is_data_dependent(other) or _COUNTED.fullmatch(other) is not None


def is_data_dependent(size: str) -> bool:
    """Whether the text of a size has a symbol that only running tells."""
    return _DATA_DEPENDENT.search(size) is not None


def is_recomputed(node: fx.Node) -> bool:
    """Whether a node is a Python number that no graph can take as an input: a float that changes between calls.

    Dynamo passes such a float as a tensor and reads it with `item`; every piece that needs it does so anew.
    """
    return node.op.startswith("call_") and isinstance(value(node), (torch.SymFloat, torch.SymBool))


def is_argument(node: fx.Node) -> bool:
    """Whether a placeholder is a tensor that the caller passes, rather than a weight or a number."""
    return tensor(node) is not None and not is_weight(node) and not is_number(node)


def is_number(node: fx.Node) -> bool:
    """Whether a placeholder is the tensor in which Dynamo passes such a float."""
    return bool(node.users) and all(map(is_recomputed, node.users))


def hint(size: int | torch.SymInt) -> int | None:
    """A size as a number: for a symbolic one the size that it was traced with, if it has one."""
    if isinstance(size, int):
        return size
    known = size.node.hint
    return int(known) if known is not None else None


def shape_hint(recorded: torch.Tensor) -> tuple[int, ...]:
    """A tensor's shape as numbers; 1 where a size has no hint."""
    return tuple(hint(size) or 1 for size in recorded.shape)


def storages(node: fx.Node) -> set[int]:
    """Which memory a node's value lives in: views share it with their base."""
    recorded = value(node)
    parts = recorded if isinstance(recorded, (tuple, list)) else (recorded,)
    return {part.untyped_storage()._cdata for part in parts if isinstance(part, torch.Tensor) and _is_strided(part)}


def is_weight(node: fx.Node) -> bool:
    """Whether a placeholder is a tensor of a module: a parameter, a buffer or a plain attribute."""
    return isinstance(value(node), torch.nn.Parameter) or is_of_module(node)


def is_of_module(node: fx.Node) -> bool:
    """Whether a placeholder was read off a module, by the source that Dynamo gave it."""
    return is_module_source(getattr(node, "_dynamo_source", None))


def is_module_source(source: object) -> bool:
    """Whether one of Dynamo's sources is an attribute of a module."""
    kind = getattr(source, "guard_source", None)
    return "NN_MODULE" in str(kind() if callable(kind) else kind)


def _is_strided(recorded: torch.Tensor) -> bool:
    try:
        recorded.untyped_storage()
    except (NotImplementedError, RuntimeError):  # wrapper subclasses and sparse tensors have no storage of their own
        return False
    return True
