"""Tensors of fixed addresses that stand for what a call passes; a captured graph reads these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_COPIED = {torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8}  # as they are
_CHUNK = 65536  # elements, at most, that one thread block of the fused copy takes: more are copied faster alone
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """Buffers for some of a graph's inputs, filled by one fused copy, and by one more for each large or odd one."""

    tensors: Mapping[int, Tensor]  # by place among the inputs; laid out as the inputs are
    fused: tuple[int, ...]  # the places of the fused copy
    read_as: torch.dtype | None  # as which it reads all of them; None: they are of one dtype as they are
    targets: list[Tensor]  # where it goes
    alone: tuple[tuple[int, Tensor, tuple[int, ...]], ...]  # (place, where it goes, dimensions that are expanded)

    def fill(self, inputs: Sequence[Any]) -> None:
        """Copies a call's inputs over what the buffers hold."""
        if self.targets:
            sources = [inputs[place] for place in self.fused]
            if self.read_as is not None:
                sources = [source.view(self.read_as) for source in sources]
            torch._foreach_copy_(self.targets, sources)
        for place, target, expanded in self.alone:
            target.copy_(_once(inputs[place], expanded))


def static_inputs(inputs: Sequence[Any], places: Sequence[int]) -> StaticInputs:
    """Buffers for the tensors at these places, with the shapes, strides and dtypes that they have now; not filled."""
    tensors = {place: _like(inputs[place]) for place in places}
    small = [place for place in places if _is_plain(inputs[place]) and inputs[place].numel() <= _CHUNK]
    dtypes = {inputs[place].dtype for place in small}
    # The fused copy takes one dtype. Where there are several, whole numbers of the size of the smallest elements: as
    # 16-bit floats CUDA would copy them by way of float32, which leaves nothing of a NaN but that it is one.
    smallest = min((dtype.itemsize for dtype in dtypes), default=1)
    read_as = None if len(dtypes) == 1 and dtypes <= _COPIED else _WHOLE[smallest]
    expanded = {place: _expanded(inputs[place]) for place in places if place not in small}
    return StaticInputs(
        tensors,
        fused=tuple(small),
        read_as=read_as,
        targets=[tensors[place] if read_as is None else tensors[place].view(read_as) for place in small],
        alone=tuple((place, _once(tensors[place], dims), dims) for place, dims in expanded.items()),
    )


def _like(tensor: Tensor) -> Tensor:
    # Outside of inference mode, or a later call under plain no_grad could not write to it.
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's bytes can be copied as they are, whatever they mean."""
    return tensor.dim() > 0 and tensor.is_contiguous() and tensor.stride(-1) == 1 and tensor.dtype != torch.bool


def _expanded(tensor: Tensor) -> tuple[int, ...]:
    return tuple(dim for dim in range(tensor.dim()) if tensor.stride(dim) == 0 and tensor.size(dim) > 1)


def _once(tensor: Tensor, expanded: tuple[int, ...]) -> Tensor:
    """A tensor without the repetitions of its expanded dimensions, to which nobody can write."""
    for dim in expanded:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor
