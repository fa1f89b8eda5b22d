"""A linear layer whose product is made in float8: matrix kernels that no layer in half precision would launch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """What `linear` does, up to rounding: its weights scaled as a whole, its input cast as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.float()
        scale = weight.abs().amax() / torch.finfo(FLOAT8).max
        self.register_buffer("weight", (weight / scale).to(FLOAT8))
        self.register_buffer("scale", scale)
        self.register_buffer("one", torch.ones_like(scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        limit = torch.finfo(FLOAT8).max
        rows = x.flatten(0, -2).clamp(-limit, limit).to(FLOAT8)
        out = torch._scaled_mm(rows, self.weight.t(), self.one, self.scale, out_dtype=x.dtype)
        return out.unflatten(0, x.shape[:-1]) + self.bias


def with_float8(model: nn.Module) -> nn.Module:
    """The same model, the widest layers of its blocks, of a FLUX, replaced."""
    for block in model.transformer_blocks:
        block.ff.net[2] = Float8Linear(block.ff.net[2])
    for block in model.single_transformer_blocks:
        block.proj_mlp = Float8Linear(block.proj_mlp)
    return model
