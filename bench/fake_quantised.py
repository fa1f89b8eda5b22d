"""Linear layers that round as those of a quantised model do: their numbers, in float32 on any machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Rounding = Callable[[Tensor], Tensor]
"""Rounds each row (the last dimension) of a float32 tensor by a scale of its own; same shape and dtype."""

_SMALLEST = 1e-12  # magnitude that a row's largest counts as at least, so that a row of zeros has a scale


def integers(bits: int) -> Rounding:
    """Symmetric integers, the row's largest magnitude at the last of them, as torchao's int8 of dynamic activations."""
    last = 2 ** (bits - 1) - 1

    def rounded(value: Tensor) -> Tensor:
        scale = value.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST) / last
        return (value / scale).round().clamp(-last, last) * scale

    return rounded


def floats(dtype: torch.dtype) -> Rounding:
    """A float8 dtype, the row's largest magnitude at its largest number."""
    last = torch.finfo(dtype).max

    def rounded(value: Tensor) -> Tensor:
        scale = value.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST) / last
        return (value / scale).clamp(-last, last).to(dtype).to(value.dtype) * scale

    return rounded


class FakeQuantised(nn.Module):
    """A linear layer whose weight is rounded once and whose input is rounded on every call."""

    def __init__(self, linear: nn.Linear, weights: Rounding, activations: Rounding) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights(linear.weight), requires_grad=False)
        self.bias = linear.bias
        self.activations = activations

    def forward(self, value: Tensor) -> Tensor:
        return nn.functional.linear(self.activations(value), self.weight, self.bias)


def quantise(model: nn.Module, weights: Rounding, activations: Rounding) -> nn.Module:
    """Every linear layer of the model's blocks, in place; what is before and after them stays, as people leave it."""
    blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
    for block in blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, FakeQuantised(child, weights, activations))
    return model
