"""What Dynamo says of a node's value, read in one place and without adding guards."""

from __future__ import annotations

import torch
from torch import fx


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
    kind = getattr(getattr(node, "_dynamo_source", None), "guard_source", None)
    return "NN_MODULE" in str(kind() if callable(kind) else kind)


def _is_strided(recorded: torch.Tensor) -> bool:
    try:
        recorded.untyped_storage()
    except (NotImplementedError, RuntimeError):  # wrapper subclasses and sparse tensors have no storage of their own
        return False
    return True


def source_line(node: fx.Node) -> str:
    """Where in the user's code a node comes from, for messages: 'model.py:12: x = torch.rand(3)'."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip(" ^~\n")]
    if len(lines) < 2 or not lines[-2].startswith("File "):
        return "unknown line"
    path, _, rest = lines[-2].removeprefix('File "').partition('"')
    number = rest.removeprefix(", line ").partition(",")[0]
    return f"{path.rpartition('/')[2]}:{number}: {lines[-1]}"
