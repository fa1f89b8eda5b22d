"""Base plus weighted residuals in one pass: the Triton kernel behind `dicache::combine`.

Where Inductor reads all residuals and selects, the kernel reads the weights first and loads no residual in vain.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import in_rows, tile

_WARPS = 4
_PROGRAMS = 16  # for each multiprocessor: as many threads as it holds


@triton.jit
def _combine_kernel(
    base,
    residual_0,
    residual_1,
    residual_2,
    scale_0,
    scale_1,
    scale_2,
    weights,
    out,
    rows,
    inner,
    base_outer,
    base_row,
    base_column,
    CHANNELS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program i writes every n-th block of ROWS rows, of n programs."""
    if not PER_CHANNEL:
        only = tl.arange(0, 1)  # a tile of one weight goes where a row of them goes
        weight_0 = tl.load(weights + only)[None, :]
        if residual_1 is not None:
            weight_1 = tl.load(weights + 1 + only)[None, :]
        if residual_2 is not None:
            weight_2 = tl.load(weights + 2 + only)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        real = row < rows
        outside = (row // inner).to(tl.int64)
        within = (row % inner).to(tl.int64)
        base_rows = base + (outside * base_outer + within * base_row)[:, None]
        for first in range(0, CHANNELS, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            whole = column < CHANNELS
            inside = real[:, None] & whole[None, :]
            far = column.to(tl.int64)[None, :]
            at = (row.to(tl.int64) * CHANNELS)[:, None] + far
            if PER_CHANNEL:
                weight_0 = tl.load(weights + column, mask=whole, other=0.0)[None, :]
                if residual_1 is not None:
                    weight_1 = tl.load(weights + CHANNELS + column, mask=whole, other=0.0)[None, :]
                if residual_2 is not None:
                    weight_2 = tl.load(weights + 2 * CHANNELS + column, mask=whole, other=0.0)[None, :]
            total = tl.load(base_rows + far * base_column, mask=inside, other=0.0).to(tl.float32)
            total += _part(residual_0, scale_0, weight_0, at, row, real, inside, PER_CHANNEL)
            if residual_1 is not None:
                total += _part(residual_1, scale_1, weight_1, at, row, real, inside, PER_CHANNEL)
            if residual_2 is not None:
                total += _part(residual_2, scale_2, weight_2, at, row, real, inside, PER_CHANNEL)
            tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _part(residual, scale, weight, at, row, real, inside, PER_CHANNEL: tl.constexpr):
    """Weight times residual, 0 where the weight is 0. What has one weight of 0 for all is not loaded."""
    # A mask that changes from channel to channel would split the loads into single elements.
    loaded = inside if PER_CHANNEL else inside & (weight != 0)
    value = tl.load(residual + at, mask=loaded, other=0.0).to(tl.float32)
    if scale is not None:
        value *= tl.load(scale + row, mask=real, other=0.0)[:, None]
    return tl.where(weight != 0, weight * value, 0.0)


def combine(
    base: Tensor,
    residuals: Sequence[Tensor],
    scales: Sequence[Tensor],
    weights: Tensor,
    dtype: torch.dtype,
    *,
    multiprocessors: int,
) -> Tensor:
    """`fused.combine` for tensors that are not empty, on a GPU with that many multiprocessors; inputs unchecked."""
    data = in_rows(base)
    rows, columns = tile(data.columns)
    programs = min(triton.cdiv(data.count, rows), multiprocessors * _PROGRAMS)
    out = torch.empty(base.shape, dtype=dtype, device=base.device)
    _combine_kernel[(programs,)](
        *data.tensors,
        *(*residuals, None, None)[:3],
        *(*scales, None, None, None)[:3],
        weights,
        out,
        data.count,
        data.inner,
        *data.strides[0],
        CHANNELS=data.columns,
        PER_CHANNEL=weights.dim() == 2,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=_WARPS,
    )
    return out
