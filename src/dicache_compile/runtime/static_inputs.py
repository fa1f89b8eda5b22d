"""Tensors of fixed addresses that stand for what a call passes; a captured graph reads these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """Buffers for some of a graph's inputs, filled by one fused copy, and by one more for each odd one."""

    tensors: Mapping[int, Tensor]  # by place among the inputs; laid out as the inputs are
    alike: tuple[int, ...]  # the places whose inputs have the fused copy's dtype
    recast: tuple[int, ...]  # those whose bytes are read as that dtype
    targets: list[Tensor]  # where the fused copy goes: first what is alike, then what is recast
    odd: tuple[tuple[int, Tensor, tuple[int, ...]], ...]  # (place, where it goes, dimensions that are expanded)

    def fill(self, inputs: Sequence[Any]) -> None:
        """Copies a call's inputs over what the buffers hold."""
        if self.targets:
            dtype = self.targets[0].dtype
            sources = [inputs[place] for place in self.alike] + [inputs[place].view(dtype) for place in self.recast]
            torch._foreach_copy_(self.targets, sources)
        for place, target, expanded in self.odd:
            target.copy_(_once(inputs[place], expanded))


def static_inputs(inputs: Sequence[Any], places: Sequence[int]) -> StaticInputs:
    """Buffers for the tensors at these places, with the shapes, strides and dtypes that they have now; not filled."""
    tensors = {place: _like(inputs[place]) for place in places}
    plain = [place for place in places if _is_plain(inputs[place])]
    # The fused copy takes one dtype: that of the smallest elements, as which all others can be read.
    smallest = min((inputs[place].dtype for place in plain), key=lambda dtype: dtype.itemsize, default=torch.uint8)
    alike = tuple(place for place in plain if inputs[place].dtype == smallest)
    recast = tuple(place for place in plain if place not in alike)
    expanded = {place: _expanded(inputs[place]) for place in places if place not in plain}
    return StaticInputs(
        tensors,
        alike,
        recast,
        targets=[tensors[place].view(smallest) for place in (*alike, *recast)],
        odd=tuple((place, _once(tensors[place], dims), dims) for place, dims in expanded.items()),
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
