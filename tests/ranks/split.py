"""A model whose tokens are split over ranks: each has some, and attends to all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests import models


def gathered(value: Tensor, dim: int, group: Any) -> Tensor:
    """All ranks' parts, one after the other."""
    size = dist.get_world_size(group)
    flat = value.movedim(dim, 0).contiguous()
    whole = torch.ops._c10d_functional.all_gather_into_tensor(flat, size, group.group_name)
    return torch.ops._c10d_functional.wait_tensor(whole).movedim(0, dim)


class SplitAttention(models.Attention):
    group: Any

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = gathered(k, 2, self.group), gathered(v, 2, self.group)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Split(models.SingleStream):
    """`SingleStream` on a part of the tokens. It takes all and gives all, as diffusers' context parallelism does."""

    group: Any

    def enter(self, *args: Any) -> models.Carried:
        carried = super().enter(*args)
        ranks, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        return {**carried, "x": carried["x"].chunk(ranks, dim=1)[rank]}

    def leave(self, carried: models.Carried) -> Tensor:
        return gathered(super().leave(carried), 1, self.group)


def split(model: nn.Module, group: Any) -> nn.Module:
    """The same weights, with the tokens split."""
    model.__class__ = Split
    model.group = group
    for block in model.blocks:
        block.attention.__class__ = SplitAttention
        block.attention.group = group
    return model
