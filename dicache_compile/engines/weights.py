"""Whether a model's weights still lie where a captured graph reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Addresses:
    """Where some of a graph's inputs were. In-place changes keep an address; `to`, `.data =` and loading may not."""

    def __init__(self, inputs: Sequence[Any], places: Sequence[int]) -> None:
        self._wrapped = {place: _parts(inputs[place]) for place in places if _is_wrapper(inputs[place])}
        self._places = [place for place in places if place not in self._wrapped]
        self._known: list[int | None] = [None] * len(inputs)
        for place in self._places:
            self._known[place] = inputs[place].data_ptr()

    def hold(self, inputs: Sequence[Any]) -> bool:
        """Whether all of them are still there. About 40 ns an input, most of it for memory that is far away."""
        return _equal(inputs, self._known, self._places) and all(
            _parts(inputs[place]) == parts for place, parts in self._wrapped.items()
        )

    def moved(self, inputs: Sequence[Any]) -> list[int]:
        """The places of those that are not."""
        plain = [place for place in self._places if inputs[place].data_ptr() != self._known[place]]
        return plain + [place for place, parts in self._wrapped.items() if _parts(inputs[place]) != parts]


def _equal_in_python(inputs: Sequence[Any], known: Sequence[int | None], places: Sequence[int]) -> bool:
    return all(inputs[place].data_ptr() == known[place] for place in places)


def _equal_in_torch(inputs: Sequence[Any], known: list[int | None], places: list[int]) -> bool:
    return bool(torch._C._tensors_data_ptrs_at_indices_equal(list(inputs), known, places))


# What Inductor's CUDA graphs compare addresses with; builds of torch without CUDA do not have it.
_equal = _equal_in_torch if hasattr(torch._C, "_tensors_data_ptrs_at_indices_equal") else _equal_in_python


def _is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is made of others, as quantised weights are."""
    return bool(is_traceable_wrapper_subclass(tensor))


def _parts(tensor: Any) -> tuple[int, ...]:
    if not _is_wrapper(tensor):
        return (tensor.data_ptr(),)
    names, _ = tensor.__tensor_flatten__()
    return tuple(address for name in names for address in _parts(getattr(tensor, name)))
