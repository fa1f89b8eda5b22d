"""What the models of this folder share: sinusoids, position tables, and how a tiny instance is made."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Carried = dict[str, Any]  # what `enter`, `run` and `leave` hand on; "x" is the denoised stream


def sinusoid(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """[B] to [B, dim], in float32."""
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def sincos_1d(dim: int, length: int) -> Tensor:
    """[length, dim]."""
    return sinusoid(torch.arange(length), dim)


def sincos_2d(dim: int, rows: int, columns: int) -> Tensor:
    """[rows * columns, dim]: one half of the channels tells the row, the other the column."""
    row = sincos_1d(dim // 2, rows)[:, None].expand(rows, columns, -1)
    column = sincos_1d(dim // 2, columns)[None].expand(rows, columns, -1)
    return torch.cat([row, column], dim=-1).reshape(rows * columns, dim)


def settled(model: nn.Module) -> nn.Module:
    """The model as the zoo hands it out: no zero parameters, eval mode, no gradients.

    With adaLN-Zero and zero biases an untrained block is the identity: x, h and y would be equal, so that no test could
    tell them apart, and every probe error would be 0. A trained model has small values there, so these get some.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.count_nonzero():
                parameter.normal_(std=0.1)
    return model.eval().requires_grad_(False)
