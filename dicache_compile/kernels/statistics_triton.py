"""Gate statistics in one pass over the data: the Triton kernels behind `dicache::statistics`.

Where Inductor reads both places of a ring and selects, the kernel reads the count of anchors first and loads the older
place alone. It holds whole rows, as float8 state has a scale for each.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused import SMALLEST
from .rows import in_rows, tile

SUMS = 5
_WARPS = 4
PROGRAMS = 8  # for each multiprocessor: 1024 threads at up to 64 registers


@triton.jit
def _statistics_kernel(
    h,
    x,
    h_prev,
    h_prev_scale,
    x_prev,
    x_prev_scale,
    p_even,
    p_odd,
    p_even_scale,
    p_odd_scale,
    anchors,
    partial,
    rows,
    inner,
    h_outer,
    h_row,
    h_column,
    x_outer,
    x_row,
    x_column,
    CHANNELS: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program i of n adds up every n-th block of ROWS rows into column i of `partial`, (5, n) float32."""
    h_moved = tl.zeros((ROWS, COLUMNS // GROUP), tl.float32)
    h_size = tl.zeros((ROWS, COLUMNS // GROUP), tl.float32)
    p_moved = tl.zeros((ROWS, COLUMNS // GROUP), tl.float32)
    x_moved = tl.zeros((ROWS, COLUMNS // GROUP), tl.float32)
    x_size = tl.zeros((ROWS, COLUMNS // GROUP), tl.float32)
    if p_even is not None:
        count = tl.load(anchors)
        p_older = tl.where(count % 2 == 0, p_even, p_odd)
        if p_even_scale is not None:
            p_older_scale = tl.where(count % 2 == 0, p_even_scale, p_odd_scale)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        real = row < rows
        outside = (row // inner).to(tl.int64)
        within = (row % inner).to(tl.int64)
        h_rows = h + (outside * h_outer + within * h_row)[:, None]
        x_rows = x + (outside * x_outer + within * x_row)[:, None]
        state_row = (row.to(tl.int64) * CHANNELS)[:, None]
        h_largest = tl.full((ROWS, COLUMNS), LEAST, tl.int32)
        x_largest = tl.full((ROWS, COLUMNS), LEAST, tl.int32)
        for first in range(0, CHANNELS, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < CHANNELS)[None, :]
            far = column.to(tl.int64)[None, :]
            at = state_row + far
            h_now = tl.load(h_rows + far * h_column, mask=inside, other=0.0)
            x_now = tl.load(x_rows + far * x_column, mask=inside, other=0.0)
            h_before = _value(h_prev, h_prev_scale, at, row, inside, real)
            # All loads before the first sum: one that stands after it waits for those before it.
            if p_even is not None:
                p_before = _value(p_older, p_older_scale if p_even_scale is not None else None, at, row, inside, real)
            if x_prev is not None:
                x_before = _value(x_prev, x_prev_scale, at, row, inside, real)
            h_exact = h_now.to(tl.float32)
            x_exact = x_now.to(tl.float32)
            h_moved += _groups(h_exact - h_before, GROUP)
            h_size += _groups(h_before, GROUP)
            if p_even is not None:
                p_moved += _groups(h_exact - x_exact - p_before, GROUP)
            if x_prev is not None:
                x_moved += _groups(x_exact - x_before, GROUP)
                x_size += _groups(x_before, GROUP)
            if h_prev_scale is not None:
                h_largest = tl.maximum(h_largest, _bits(h_exact))
                x_largest = tl.maximum(x_largest, _bits(x_exact))
            else:
                # What one thread stores another may have loaded: state is laid out over the threads by its own dtype
                # when it is stored, and by the narrowest of the tile's when it is loaded.
                tl.debug_barrier()
                tl.store(h_prev + at, h_now.to(h_prev.dtype.element_ty), mask=inside)
                if x_prev is not None:
                    tl.store(x_prev + at, x_now.to(x_prev.dtype.element_ty), mask=inside)
        if h_prev_scale is not None:
            _store_scaled(
                h_rows, h_column, h_largest, h_prev, h_prev_scale, row, real, state_row, CHANNELS, LARGEST, COLUMNS
            )
            if x_prev is not None:
                _store_scaled(
                    x_rows, x_column, x_largest, x_prev, x_prev_scale, row, real, state_row, CHANNELS, LARGEST, COLUMNS
                )
    # Own column, no atomics: the gate must give the same answer on every run.
    own = partial + tl.program_id(0)
    programs = tl.num_programs(0)
    tl.store(own, _total(h_moved))
    tl.store(own + programs, _total(h_size))
    if p_even is not None:
        tl.store(own + 2 * programs, tl.where(count > 1, _total(p_moved), 0.0))
    else:
        tl.store(own + 2 * programs, 0.0)
    tl.store(own + 3 * programs, _total(x_moved))
    tl.store(own + 4 * programs, _total(x_size))


@triton.jit
def _value(stored, scale, at, row, inside, real):
    """Float32 values of a tile of state."""
    exact = tl.load(stored + at, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        exact *= tl.load(scale + row, mask=real, other=0.0)[:, None]
    return exact


@triton.jit
def _groups(values, GROUP: tl.constexpr):
    """Sums of |values| over GROUP neighbours, which one thread holds: a register for each sum instead of GROUP."""
    return tl.sum(tl.reshape(tl.abs(values), (values.shape[0], values.shape[1] // GROUP, GROUP)), axis=2)


@triton.jit
def _bits(values):
    """|values| as integers of the same order, in which NaN is above infinity: a plain maximum would drop it."""
    return tl.abs(values).to(tl.int32, bitcast=True)


@triton.jit
def _store_scaled(
    current,
    stride,
    largest_bits,
    stored,
    scale,
    row,
    real,
    state_row,
    CHANNELS: tl.constexpr,
    LARGEST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Second pass over a block of rows, from cache: their scales, then what is stored."""
    new_scale = tl.max(largest_bits, axis=1).to(tl.float32, bitcast=True) * (1 / LARGEST)
    tl.debug_barrier()  # all threads have loaded the scales that are overwritten here
    tl.store(scale + row, new_scale, mask=real)
    for first in range(0, CHANNELS, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < CHANNELS)[None, :]
        far = column.to(tl.int64)[None, :]
        exact = tl.load(current + far * stride, mask=inside, other=0.0).to(tl.float32)
        ratio = tl.clamp(tl.div_rn(exact, new_scale[:, None]), -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
        tl.store(stored + state_row + far, ratio.to(stored.dtype.element_ty), mask=inside)


@triton.jit
def _total(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit
def _add_kernel(partial, sums, programs, PROGRAMS: tl.constexpr):
    """Program k adds row k of `partial`, all at once and in a fixed order."""
    place = tl.arange(0, PROGRAMS)
    values = tl.load(partial + tl.program_id(0) * programs + place, mask=place < programs, other=0.0)
    tl.store(sums + tl.program_id(0), tl.sum(values, axis=0))


def statistics(
    h: Tensor,
    x: Tensor,
    h_prev: Tensor,
    h_prev_scale: Tensor | None,
    x_prev: Tensor | None,
    x_prev_scale: Tensor | None,
    anchors_p: Sequence[Tensor],
    anchors_p_scales: Sequence[Tensor],
    anchors: Tensor,
    *,
    multiprocessors: int,
) -> Tensor:
    """`fused.statistics` for tensors that are not empty, on a GPU with that many multiprocessors; inputs unchecked."""
    data = in_rows(h, x)
    rows, columns = tile(data.columns)
    programs = min(triton.cdiv(data.count, rows), multiprocessors * PROGRAMS)
    partial = torch.empty((SUMS, programs), dtype=torch.float32, device=h.device)
    sums = torch.empty((SUMS,), dtype=torch.float32, device=h.device)
    p_even, p_odd = anchors_p or (None, None)
    p_even_scale, p_odd_scale = anchors_p_scales or (None, None)
    _statistics_kernel[(programs,)](
        *data.tensors,
        h_prev,
        h_prev_scale,
        x_prev,
        x_prev_scale,
        p_even,
        p_odd,
        p_even_scale,
        p_odd_scale,
        anchors,
        partial,
        data.count,
        data.inner,
        *data.strides[0],
        *data.strides[1],
        CHANNELS=data.columns,
        LARGEST=torch.finfo(h_prev.dtype).max,
        LEAST=_LEAST,
        GROUP=min(columns, 16 // h.element_size()),
        ROWS=rows,
        COLUMNS=columns,
        num_warps=_WARPS,
    )
    _add_kernel[(SUMS,)](partial, sums, programs, PROGRAMS=triton.next_power_of_2(programs), num_warps=_WARPS)
    return sums


_LEAST = int(torch.tensor(SMALLEST, dtype=torch.float32).view(torch.int32))  # as `_bits` gives it
