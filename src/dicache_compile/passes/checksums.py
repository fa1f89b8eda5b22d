"""A number for each condition, by which a step sees that the prompt is another one.

On a reused step little else runs, so that every kernel counts: small conditions are summed side by side by one. Not so
on a CPU, where a kernel is a loop that costs nothing to begin, and padding costs more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from . import values
from .emit import Emitter

_SMALL = 1 << 14  # elements, up to which a condition is summed beside others
_AT_ONCE = 8  # that one kernel can read: Inductor first copies what it stacks of more


def emit(emitter: Emitter, conditions: Sequence[fx.Node]) -> fx.Node:
    """The checksums of at least one condition: float32, shape (conditions,), always in the same order."""
    found: list[fx.Node] = []
    for group in grouped(conditions):
        lengths = [_length(node) for node in group]
        found.append(emitter.trace(checksums, [emitter.read(node) for node in group], lengths))
    sums: fx.Node = found[0] if len(found) == 1 else emitter.trace(torch.cat, found)
    return sums


def grouped(conditions: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The conditions that are summed side by side, and each of the others alone."""
    small = [node for node in conditions if _is_small(node)]
    alone = [[node] for node in conditions if node not in small]
    return [small[place : place + _AT_ONCE] for place in range(0, len(small), _AT_ONCE)] + alone


def checksums(conditions: Sequence[Tensor], lengths: Sequence[int | None]) -> Tensor:
    """Numbers that tell two prompts apart: float32, shape (conditions,). They depend on the order of the elements.

    `lengths` are the numbers of their elements, which may be None for one that is alone.
    """
    longest = max(length or 0 for length in lengths)
    flat = [condition.reshape(-1).float() for condition in conditions]
    if len(flat) > 1:
        flat = [pad(row, (0, longest - (length or 0))) for row, length in zip(flat, lengths, strict=True)]
    rows = torch.stack(flat)
    # Fibonacci hashing (Knuth, TAOCP 3, section 6.4) of the place, into [0.5, 1.5): the golden ratio's 32 bits times
    # it, of which the upper 16 of the lower 32. It has no division, which 64-bit numbers are slow at.
    place = torch.arange(rows.size(1), device=rows.device)
    upper = ((place * 0x9E3779B1) >> 16) & 0xFFFF
    return (rows * (upper.to(torch.int32) * 2.0**-16 + 0.5)).sum(1)


def _is_small(node: fx.Node) -> bool:
    """Whether a condition on a device with kernels is small, and is so whatever it is called with."""
    recorded, length = values.tensor(node), _length(node)
    return recorded is not None and recorded.device.type != "cpu" and length is not None and length <= _SMALL


def _length(node: fx.Node) -> int | None:
    """A condition's elements; None where that is not a plain number."""
    recorded = values.tensor(node)
    if recorded is None or not all(isinstance(size, int) for size in recorded.shape):
        return None
    return math.prod(recorded.shape)
