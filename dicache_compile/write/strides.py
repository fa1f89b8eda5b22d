"""How an estimate lies in memory: as the deep blocks' result does, of which the epilogue may take a view."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..graph import values


def order_of(y: Tensor, x: Tensor) -> tuple[int, ...] | None:
    """The dimensions of y from the one with the largest stride on, as they are where it has gaps; None where an
    estimate, which lies in memory as x does, already lies so.
    """
    plain = tuple(range(y.dim()))
    order = _descending(y)
    order = order if _is_dense(y, order) else plain
    return None if order == plain and _is_dense(x, plain) else order


def is_permuted(recorded: Tensor) -> bool:
    """Whether a tensor lies in memory without gaps, but with its dimensions in another order."""
    return not _is_dense(recorded, range(recorded.dim())) and _is_dense(recorded, _descending(recorded))


def _descending(recorded: Tensor) -> tuple[int, ...]:
    strides = [values.hint(stride) or 1 for stride in recorded.stride()]
    return tuple(sorted(range(recorded.dim()), key=lambda dim: (-strides[dim], dim)))


def _is_dense(recorded: Tensor, order: Sequence[int]) -> bool:
    """Whether a tensor lies in memory without gaps, its dimensions one inside of the other in this order."""
    sizes, expected = values.shape_hint(recorded), 1
    for dim in reversed(order):
        if sizes[dim] != 1 and values.hint(recorded.stride(dim)) != expected:
            return False
        expected *= sizes[dim]
    return True


def laid_out(y: Tensor, order: tuple[int, ...]) -> Tensor:
    """An estimate with its dimensions one inside of the other in this order. Traced into the graph."""
    plain = tuple(range(len(order)))
    if order == plain:
        return y.contiguous()
    back = tuple(sorted(plain, key=lambda dim: order[dim]))
    return y.permute(order).contiguous().permute(back)
