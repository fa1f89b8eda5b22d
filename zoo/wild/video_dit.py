"""A video DiT with attention factorised over space and time (Latte, arXiv 2401.03048; Open-Sora), and a prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sincos_1d, sincos_2d, sinusoid


def to_frames(x: Tensor, t: int, s: int) -> Tensor:
    """From `b (t s) c` to `(b t) s c`."""
    return x.reshape(x.shape[0] * t, s, x.shape[-1])


def from_frames(x: Tensor, t: int, s: int) -> Tensor:
    """And back."""
    return x.reshape(-1, t * s, x.shape[-1])


def to_tubes(x: Tensor, t: int, s: int) -> Tensor:
    """From `b (t s) c` to `(b s) t c`."""
    b, _, c = x.shape
    return x.view(b, t, s, c).transpose(1, 2).reshape(b * s, t, c)


def from_tubes(x: Tensor, t: int, s: int) -> Tensor:
    """And back."""
    c = x.shape[-1]
    return x.view(-1, s, t, c).transpose(1, 2).reshape(-1, t * s, c)


class Attention(nn.Module):
    """Self-attention, or cross attention where it is given a memory."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(memory).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class STBlock(nn.Module):
    def __init__(self, dim: int, heads: int, t: int, s: int) -> None:
        super().__init__()
        self.t, self.s = t, s
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, heads)
        self.attn_temp = Attention(dim, heads)
        self.cross_attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(approximate="tanh"), nn.Linear(2 * dim, dim))
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        nn.init.zeros_(self.attn_temp.proj.weight)  # starts as an image model
        nn.init.zeros_(self.attn_temp.proj.bias)

    def forward(self, x: Tensor, y: Tensor, c: Tensor, tpe: Tensor | None = None) -> Tensor:
        table = self.scale_shift_table[None] + c.view(c.shape[0], 6, -1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
        x_m = self.norm1(x) * (1 + scale_msa) + shift_msa
        x_s = from_frames(self.attn(to_frames(x_m, self.t, self.s)), self.t, self.s)
        x = x + gate_msa * x_s
        x_t = to_tubes(x, self.t, self.s)
        if tpe is not None:
            x_t = x_t + tpe
        x_t = from_tubes(self.attn_temp(x_t), self.t, self.s)
        x = x + gate_msa * x_t
        x = x + self.cross_attn(x, y)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp)


class VideoDiT(nn.Module):
    def __init__(self, frames: int = 4, side: int = 6, hidden: int = 24, depth: int = 4, caption: int = 12) -> None:
        super().__init__()
        self.depth, self.channels = depth, 4
        self.t, self.grid = frames, side // 2
        self.x_embedder = nn.Conv3d(self.channels, hidden, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.t_embedder = nn.Sequential(nn.Linear(16, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = nn.Linear(caption, hidden)
        self.register_buffer("pos_embed", sincos_2d(hidden, self.grid, self.grid)[None])
        self.register_buffer("pos_embed_temporal", sincos_1d(hidden, frames)[None])
        self.blocks = nn.ModuleList([STBlock(hidden, 2, frames, self.grid**2) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
        self.final_table = nn.Parameter(torch.randn(2, hidden) / hidden**0.5)
        self.linear = nn.Linear(hidden, 4 * self.channels)

    def embed(self, x: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(3).permute(0, 2, 3, 1)  # b c t h w -> b t s c
        return (x + self.pos_embed).flatten(1, 2)

    def final(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.final_table[None] + e[:, None]).chunk(2, dim=1)
        x = self.linear(self.norm_final(x) * (1 + scale) + shift)
        x = x.view(-1, self.t, self.grid, self.grid, 2, 2, self.channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, self.channels, self.t, 2 * self.grid, 2 * self.grid)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor) -> Tensor:
        x = self.embed(x)
        e = self.t_embedder(sinusoid(timestep, 16).to(x.dtype))
        c, y = self.t_block(e), self.y_embedder(y)
        for i, block in enumerate(self.blocks):
            x = block(x, y, c, self.pos_embed_temporal if i == 0 else None)
        return self.final(x, e)

    def enter(self, x: Tensor, timestep: Tensor, y: Tensor) -> Carried:
        x = self.embed(x)
        e = self.t_embedder(sinusoid(timestep, 16).to(x.dtype))
        return {"x": x, "e": e, "c": self.t_block(e), "y": self.y_embedder(y)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for i in range(first, last):
            x = self.blocks[i](x, carried["y"], carried["c"], self.pos_embed_temporal if i == 0 else None)
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return self.final(carried["x"], carried["e"])
