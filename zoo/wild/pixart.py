"""PixArt-alpha (arXiv 2310.00426): a shared modulation of time, a table in each block, cross attention to a prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sincos_2d, sinusoid


def t2i_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def embedder(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class MultiHeadCrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cond: Tensor, bias: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q_linear(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv_linear(cond).view(b, -1, 2, self.num_heads, c // self.num_heads).unbind(2)
        x = functional.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class PixArtBlock(nn.Module):
    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.cross_attn = MultiHeadCrossAttention(hidden, num_heads)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden) / hidden**0.5)

    def attn(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))

    def forward(self, x: Tensor, y: Tensor, t: Tensor, bias: Tensor) -> Tensor:
        b = x.shape[0]
        table = self.scale_shift_table[None] + t.reshape(b, 6, -1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
        x = x + gate_msa * self.attn(t2i_modulate(self.norm1(x), shift_msa, scale_msa))
        x = x + self.cross_attn(x, y, bias)
        return x + gate_mlp * self.mlp(t2i_modulate(self.norm2(x), shift_mlp, scale_mlp))


class PixArt(nn.Module):
    def __init__(self, hidden: int = 24, depth: int = 4, caption_channels: int = 12) -> None:
        super().__init__()
        self.depth, self.hidden = depth, hidden
        self.patch, self.channels, self.out_channels = 2, 4, 8
        self.x_embedder = nn.Conv2d(self.channels, hidden, self.patch, stride=self.patch)
        self.t_embedder = embedder(16, hidden)
        self.csize_embedder = embedder(16, hidden // 3)  # height and width, then the aspect ratio: a third each
        self.ar_embedder = embedder(16, hidden // 3)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = embedder(caption_channels, hidden)
        self.blocks = nn.ModuleList([PixArtBlock(hidden, 2) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden) / hidden**0.5)
        self.linear = nn.Linear(hidden, self.patch**2 * self.out_channels)
        for block in self.blocks:
            nn.init.zeros_(block.cross_attn.proj.weight)
            nn.init.zeros_(block.cross_attn.proj.bias)

    def micro(self, data_info: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        size, ratio = data_info["img_hw"], data_info["aspect_ratio"]
        csize = self.csize_embedder(sinusoid(size.reshape(-1), 16).to(dtype)).reshape(size.shape[0], -1)
        ar = self.ar_embedder(sinusoid(ratio.reshape(-1), 16).to(dtype)).reshape(size.shape[0], -1)
        return torch.cat([csize, ar], dim=1)

    def embed(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor, data_info: dict[str, Tensor]) -> Any:
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        pos_embed = sincos_2d(self.hidden, rows, columns).unsqueeze(0).to(x)  # of this call's shape, so made here
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + pos_embed
        t = self.t_embedder(sinusoid(timestep, 16).to(x.dtype)) + self.micro(data_info, x.dtype)
        y = self.y_embedder(y).squeeze(1)  # b 1 l c -> b l c
        bias = (1 - mask.to(x.dtype))[:, None, None, :] * -10000.0
        return x, t, self.t_block(t), y, bias

    def final(self, x: Tensor, t: Tensor, rows: int, columns: int) -> Tensor:
        shift, scale = (self.scale_shift_table[None] + t[:, None]).chunk(2, dim=1)
        x = self.linear(t2i_modulate(self.norm_final(x), shift, scale))
        x = x.reshape(x.shape[0], rows, columns, self.patch, self.patch, self.out_channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(x.shape[0], self.out_channels, rows * self.patch, columns * self.patch)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor, data_info: dict[str, Tensor]) -> Tensor:
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        x, t, t0, y, bias = self.embed(x, timestep, y, mask, data_info)
        for block in self.blocks:
            x = block(x, y, t0, bias)
        return self.final(x, t, rows, columns)

    def enter(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor, data_info: dict[str, Tensor]) -> Carried:
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        x, t, t0, y, bias = self.embed(x, timestep, y, mask, data_info)
        return {"x": x, "t": t, "t0": t0, "y": y, "bias": bias, "grid": grid}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for i in range(first, last):
            x = self.blocks[i](x, carried["y"], carried["t0"], carried["bias"])
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return self.final(carried["x"], carried["t"], *carried["grid"])
