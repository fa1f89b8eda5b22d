"""How the kernels see tensors of any rank: as rows, cut into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

TILE = 1024  # elements; with four warps, 16 bytes of bfloat16 for each thread and load
_NARROWEST = 256  # columns; narrower tiles of a wide row would be many short loads


@dataclass(frozen=True, slots=True)
class Rows:
    """Tensors of one shape as `outer` times `inner` rows of `columns` elements."""

    tensors: tuple[Tensor, ...]
    strides: tuple[tuple[int, int, int], ...]  # of each tensor: from outer to outer, row to row, column to column
    outer: int
    inner: int
    columns: int

    @property
    def count(self) -> int:
        return self.outer * self.inner


def in_rows(*tensors: Tensor) -> Rows:
    """Tensors of one shape, of rank 1 or more, as rows along their last dimension.

    Slices and transposed tensors are read where they lie. Where the dimensions before the last cannot be merged into
    two for all tensors at once, the tensors that are not contiguous are copied.
    """
    sizes, strides = _merge(tensors[0].shape[:-1], [tensor.stride()[:-1] for tensor in tensors])
    if len(sizes) > 2:
        return in_rows(*(tensor.contiguous() for tensor in tensors))
    missing = 2 - len(sizes)
    outer, inner = (1,) * missing + sizes
    columns = tensors[0].shape[-1]
    found = []
    for tensor, leading in zip(tensors, strides, strict=True):
        far, near = (0,) * missing + leading
        # The stride of a single column may be anything; 1 is what kernels are specialised on.
        found.append((far, near, tensor.stride(-1) if columns > 1 else 1))
    return Rows(tensors, tuple(found), outer, inner, columns)


def _merge(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Sizes and strides with neighbours merged into one dimension where every tensor allows it."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for place, size in enumerate(shape):
        if size == 1:
            continue
        step = [stride[place] for stride in strides]
        if sizes and all(known[-1] == size * near for known, near in zip(merged, step, strict=True)):
            sizes[-1] *= size
            for known, near in zip(merged, step, strict=True):
                known[-1] = near
        else:
            sizes.append(size)
            for known, near in zip(merged, step, strict=True):
                known.append(near)
    return tuple(sizes), tuple(tuple(known) for known in merged)


def tile(columns: int) -> tuple[int, int]:
    """(rows, columns) of a tile of TILE elements: powers of two, as few lanes idle at the ends of rows as possible."""
    widest = min(TILE, 1 << (columns - 1).bit_length())
    widths = [width for width in (TILE, TILE // 2, TILE // 4) if _NARROWEST <= width <= widest] or [widest]
    width = min(widths, key=lambda width: (-(-columns // width) * width, -width))
    return TILE // width, width
