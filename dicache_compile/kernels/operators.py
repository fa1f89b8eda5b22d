"""The fused operations as PyTorch operators: `dicache::statistics` and `dicache::combine`.

On CPU they are the eager references of `fused`, on CUDA the Triton kernels, imported when the first of them runs.
Graphs hold them as one node each, under `torch.compile` and `torch.export` too. Importing this module registers them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import fused

COMPUTED = (torch.float32, torch.float16, torch.bfloat16)
STORED = (*COMPUTED, *fused.FLOAT8)
_ANY_STRIDES = (torch.Tag.flexible_layout,)  # Inductor need not copy an intermediate into eager's strides for us


@torch.library.custom_op(
    "dicache::statistics",
    mutates_args=("h_prev", "h_prev_scale", "x_prev", "x_prev_scale"),
    device_types="cpu",
    schema="(Tensor h, Tensor x, Tensor(a!) h_prev, Tensor(b!)? h_prev_scale, Tensor(c!)? x_prev, "
    "Tensor(d!)? x_prev_scale, Tensor[] anchors_p, Tensor[] anchors_p_scales, Tensor anchors) -> Tensor",
    tags=_ANY_STRIDES,
)
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
) -> Tensor:
    """What gate and estimator need of a step, as five float32 sums; then writes h to `h_prev` and x to `x_prev`.

    Args:
        h: The stream behind the probe; float32, float16 or bfloat16, of rank 1 or more, with any strides.
        x: The stream before it; of h's shape and dtype.
        h_prev: State (see `fused`); of h's shape, contiguous, of one of these dtypes or a float8 one.
        h_prev_scale: Given if and only if `h_prev` is float8: float32, of h's shape with a last dimension of 1.
        x_prev: State of `h_prev`'s dtype, or None.
        x_prev_scale: As `h_prev_scale`, for `x_prev`.
        anchors_p: The ring of probe residuals: state of one dtype, two places or none.
        anchors_p_scales: Their scales, if they are float8.
        anchors: The number of anchors so far; int64, shape (). The newest is at place (anchors - 1) % 2.

    Returns:
        The sums |h - h_prev|, |h_prev|, |h - x - P2|, |x - x_prev|, |x_prev|, where P2 is the older anchor. The third
        is 0 without a ring and with fewer than two anchors, the last two without `x_prev`. Bit-equal on every run.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: a shape, a device, the strides of state or the number of tensors is none of the above.
    """
    _check_statistics(h, x, h_prev, h_prev_scale, x_prev, x_prev_scale, anchors_p, anchors_p_scales, anchors)
    return fused.statistics(h, x, h_prev, h_prev_scale, x_prev, x_prev_scale, anchors_p, anchors_p_scales, anchors)


@torch.library.custom_op(
    "dicache::combine",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor base, Tensor[] residuals, Tensor[] scales, Tensor weights, ScalarType dtype) -> Tensor",
    tags=_ANY_STRIDES,
)
def combine(
    base: Tensor, residuals: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, dtype: torch.dtype
) -> Tensor:
    """The sum base + sum_k weights[k] residuals[k] in float32, then cast; a weight of 0 masks what it weighs.

    Args:
        base: float32, float16 or bfloat16, of rank 1 or more, with any strides.
        residuals: One to three; state (see `fused`) of base's shape and of one dtype.
        scales: Their scales if they are float8, else empty.
        weights: float32, of shape (K,), or (K, C) with one for each channel, the last dimension of base.
        dtype: float32, float16 or bfloat16.

    Returns:
        A contiguous tensor of `dtype` and base's shape.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: a shape, a device or the number of tensors is none of the above.
    """
    _check_combine(base, residuals, scales, weights, dtype)
    return fused.combine(base, residuals, scales, weights, dtype)


@statistics.register_fake
def _(h: Tensor, *others: object) -> Tensor:
    return h.new_empty((5,), dtype=torch.float32)


@combine.register_fake
def _(
    base: Tensor, residuals: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, dtype: torch.dtype
) -> Tensor:
    return base.new_empty(base.shape, dtype=dtype)


@statistics.register_kernel("cuda")
def _(
    h: Tensor,
    x: Tensor,
    h_prev: Tensor,
    h_prev_scale: Tensor | None,
    x_prev: Tensor | None,
    x_prev_scale: Tensor | None,
    anchors_p: Sequence[Tensor],
    anchors_p_scales: Sequence[Tensor],
    anchors: Tensor,
) -> Tensor:
    _check_statistics(h, x, h_prev, h_prev_scale, x_prev, x_prev_scale, anchors_p, anchors_p_scales, anchors)
    if not h.numel():
        return h.new_zeros((5,), dtype=torch.float32)
    from . import statistics_triton

    with torch.cuda.device(h.device):
        return statistics_triton.statistics(
            h,
            x,
            h_prev,
            h_prev_scale,
            x_prev,
            x_prev_scale,
            [p.contiguous() for p in anchors_p],
            [scale.contiguous() for scale in anchors_p_scales],
            anchors,
            multiprocessors=torch.cuda.get_device_properties(h.device).multi_processor_count,
        )


@combine.register_kernel("cuda")
def _(
    base: Tensor, residuals: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, dtype: torch.dtype
) -> Tensor:
    _check_combine(base, residuals, scales, weights, dtype)
    if not base.numel():
        return torch.empty(base.shape, dtype=dtype, device=base.device)
    from . import combine_triton

    with torch.cuda.device(base.device):
        return combine_triton.combine(
            base,
            [residual.contiguous() for residual in residuals],
            [scale.contiguous() for scale in scales],
            weights.contiguous(),
            dtype,
            multiprocessors=torch.cuda.get_device_properties(base.device).multi_processor_count,
        )


def _check_statistics(
    h: Tensor,
    x: Tensor,
    h_prev: Tensor,
    h_prev_scale: Tensor | None,
    x_prev: Tensor | None,
    x_prev_scale: Tensor | None,
    anchors_p: Sequence[Tensor],
    anchors_p_scales: Sequence[Tensor],
    anchors: Tensor,
) -> None:
    _check("h", h, h, COMPUTED)
    _check("x", x, h, (h.dtype,))
    _check_stored(("h_prev",), (h_prev,), _given(h_prev_scale), h)
    if x_prev is not None:
        _check_stored(("h_prev", "x_prev"), (h_prev, x_prev), (*_given(h_prev_scale), *_given(x_prev_scale)), h)
    elif x_prev_scale is not None:
        raise ValueError("x_prev_scale is given without x_prev")
    for name, written in zip(
        ("h_prev", "h_prev_scale", "x_prev", "x_prev_scale"), (h_prev, h_prev_scale, x_prev, x_prev_scale), strict=True
    ):
        if written is not None and not written.is_contiguous():
            raise ValueError(f"{name} has strides {tuple(written.stride())}; expected a contiguous tensor")
    if len(anchors_p) not in (0, 2):
        raise ValueError(f"anchors_p has {len(anchors_p)} places; expected 2 or none")
    _check_stored(("anchors_p[0]", "anchors_p[1]")[: len(anchors_p)], anchors_p, anchors_p_scales, h)
    _check("anchors", anchors, h, (torch.int64,), ())


def _check_combine(
    base: Tensor, residuals: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, dtype: torch.dtype
) -> None:
    _check("base", base, base, COMPUTED)
    if not 1 <= len(residuals) <= 3:
        raise ValueError(f"{len(residuals)} residuals given; expected 1 to 3")
    _check_stored([f"residuals[{place}]" for place in range(len(residuals))], residuals, scales, base)
    per_channel = (len(residuals), base.shape[-1])
    _check("weights", weights, base, (torch.float32,), per_channel if weights.dim() == 2 else per_channel[:1])
    if dtype not in COMPUTED:
        raise TypeError(f"dtype is {dtype}; expected {_names(COMPUTED)}")


def _check_stored(names: Sequence[str], stored: Sequence[Tensor], scales: Sequence[Tensor], like: Tensor) -> None:
    """State of one dtype, with a scale for each if that is float8."""
    for name, tensor in zip(names, stored, strict=True):
        _check(name, tensor, like, (stored[0].dtype,) if tensor.dtype in STORED else STORED)
    expected = len(stored) if stored and stored[0].dtype in fused.FLOAT8 else 0
    if len(scales) != expected:
        raise ValueError(
            f"{len(scales)} scales given for {', '.join(names) or 'no state'}"
            f"{f' of {stored[0].dtype}' if stored else ''}; expected {expected}"
        )
    for name, scale in zip(names, scales, strict=False):
        _check(f"the scale of {name}", scale, like, (torch.float32,), (*like.shape[:-1], 1))


def _check(
    name: str, tensor: Tensor, like: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int] | None = None
) -> None:
    expected = tuple(like.shape if shape is None else shape)
    if like.dim() == 0:
        raise ValueError(f"{name} has shape (); expected at least one dimension")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; expected {_names(dtypes)}")
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; expected {like.device}")


def _given(scale: Tensor | None) -> tuple[Tensor, ...]:
    return () if scale is None else (scale,)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
