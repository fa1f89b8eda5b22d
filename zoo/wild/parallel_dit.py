"""A DiT of parallel blocks (after arXiv 2302.05442) that add in place. No ModuleList; weights are shared twice over.

One modulation serves all blocks, one linear layer feeds attention and MLP, and each block runs twice in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sincos_2d, sinusoid


class ParallelBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = (dim, dim, dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.w_in = nn.Linear(dim, sum(self.sizes), bias=False)
        self.w_attn = nn.Linear(dim, dim, bias=False)
        self.w_mlp = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, mod: Tensor) -> Tensor:
        h = self.norm(x).mul_(1 + mod[:, 1:2]).add_(mod[:, :1])
        q, k, v, mlp = self.w_in(h).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attn = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x += mod[:, 2:3] * self.w_attn(attn)
        x += mod[:, 3:4] * self.w_mlp(functional.gelu(mlp))
        return x


class ParallelDiT(nn.Module):
    def __init__(self, side: int = 8, dim: int = 24, blocks: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.blocks, self.depth = blocks, 2 * blocks
        self.patch, self.channels, self.side = 2, 4, side
        self.embed = nn.Conv2d(self.channels, dim, self.patch, stride=self.patch, bias=False)
        self.register_buffer("pos", sincos_2d(dim, side // 2, side // 2), persistent=False)
        self.time = nn.Linear(16, dim)
        self.label = nn.Embedding(num_classes, dim)
        self.mod = nn.Linear(dim, 4 * dim)
        for i in range(blocks):
            setattr(self, f"block{i}", ParallelBlock(dim, 2))
        self.norm_out = nn.LayerNorm(dim)
        self.unembed = nn.ConvTranspose2d(dim, self.channels, self.patch, stride=self.patch)
        nn.init.zeros_(self.mod.weight)
        nn.init.zeros_(self.mod.bias)

    def block(self, i: int) -> nn.Module:
        return getattr(self, f"block{i // 2}")

    def embedded(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT.contiguous()
        x += self.pos
        return x

    def modulation(self, t: Tensor, y: Tensor) -> Tensor:
        c = self.time(sinusoid(t, 16).to(self.pos.dtype))
        c += self.label(y)
        return self.mod(functional.silu(c, inplace=True)).unflatten(-1, (4, -1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, mod = self.embedded(x), self.modulation(t, y)
        for i in range(self.depth):
            x = self.block(i)(x, mod)
        return self.leave({"x": x})

    def enter(self, x: Tensor, t: Tensor, y: Tensor) -> Carried:
        return {"x": self.embedded(x), "mod": self.modulation(t, y)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"].clone()  # the blocks write into it
        for i in range(first, last):
            x = self.block(i)(x, carried["mod"])
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        rows = self.side // self.patch
        return self.unembed(torch.unflatten(self.norm_out(carried["x"]).mT, 2, (rows, rows)))
