"""MM-DiT (arXiv 2403.03206): two streams meet in one attention; the last block drops its text. q, k, v stay packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sincos_2d, sinusoid


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class HalfBlock(nn.Module):
    """One modality's half of a joint block; with `pre_only` it gives q, k and v and ends there."""

    def __init__(self, dim: int, heads: int, pre_only: bool) -> None:
        super().__init__()
        self.heads, self.pre_only = heads, pre_only
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.ln_q, self.ln_k = RMSNorm(dim // heads), RMSNorm(dim // heads)
        self.n_mods = 2 if pre_only else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, self.n_mods * dim))
        if not pre_only:
            self.proj = nn.Linear(dim, dim)
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.fc1 = nn.Linear(dim, 2 * dim)
            self.fc2 = nn.Linear(2 * dim, dim)

    def pre_attention(self, x: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The packed [3, B, H, L, D] and what the rest of the block needs."""
        mods = self.adaLN_modulation(c).chunk(self.n_mods, dim=1)
        x = self.norm1(x) * (1 + mods[1][:, None]) + mods[0][:, None]
        b, length, _ = x.shape
        qkv = self.qkv(x).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # b l (k h d) -> k b h l d
        return torch.stack((self.ln_q(qkv[0]), self.ln_k(qkv[1]), qkv[2])), mods[2:]

    def post_attention(self, attn: Tensor, x: Tensor, mods: tuple[Tensor, ...]) -> Tensor:
        gate_msa, shift_mlp, scale_mlp, gate_mlp = (mod[:, None] for mod in mods)
        x = x + gate_msa * self.proj(attn)
        hidden = self.fc1(self.norm2(x) * (1 + scale_mlp) + shift_mlp)
        return x + gate_mlp * self.fc2(functional.gelu(hidden, approximate="tanh"))


class JointBlock(nn.Module):
    def __init__(self, dim: int, heads: int, pre_only: bool = False) -> None:
        super().__init__()
        self.context_block = HalfBlock(dim, heads, pre_only)
        self.x_block = HalfBlock(dim, heads, False)

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        context_qkv, context_mods = self.context_block.pre_attention(context, c)
        x_qkv, x_mods = self.x_block.pre_attention(x, c)
        q, k, v = torch.cat((context_qkv, x_qkv), dim=3)
        attn = functional.scaled_dot_product_attention(q, k, v)
        attn = attn.permute(0, 2, 1, 3).flatten(2)  # b h l d -> b l (h d)
        context_attn, x_attn = attn[:, : context.shape[1]], attn[:, context.shape[1] :]
        x = self.x_block.post_attention(x_attn, x, x_mods)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.post_attention(context_attn, context, context_mods), x


class MMDiT(nn.Module):
    def __init__(self, side: int = 8, hidden: int = 24, depth: int = 4, context_dim: int = 12) -> None:
        super().__init__()
        self.depth, self.patch, self.channels = depth, 2, 4
        self.x_embedder = nn.Conv2d(self.channels, hidden, self.patch, stride=self.patch)
        self.context_embedder = nn.Linear(context_dim, hidden)
        self.t_embedder = nn.Sequential(nn.Linear(16, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.y_embedder = nn.Sequential(nn.Linear(context_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.register_buffer("pos_embed", sincos_2d(hidden, side // self.patch, side // self.patch)[None])
        self.joint_blocks = nn.ModuleList(JointBlock(hidden, 2, pre_only=i == depth - 1) for i in range(depth))
        self.norm_final = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.adaLN_final = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.linear = nn.Linear(hidden, self.patch**2 * self.channels)

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        return self.t_embedder(sinusoid(t, 16).to(y.dtype)) + self.y_embedder(y)

    def final(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_final(c).chunk(2, dim=1)
        x = self.linear(self.norm_final(x) * (1 + scale[:, None]) + shift[:, None])
        side = int(x.shape[1] ** 0.5)
        x = x.view(-1, side, side, self.patch, self.patch, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, side * self.patch, side * self.patch)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.condition(timesteps, y)
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c=c)
        return self.final(x, c)

    def enter(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Carried:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        return {"x": x, "c": self.condition(timesteps, y), "context": self.context_embedder(context)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        context, x = carried["context"], carried["x"]
        for i in range(first, last):
            context, x = self.joint_blocks[i](context, x, c=carried["c"])
        return {**carried, "x": x, "context": context}

    def leave(self, carried: Carried) -> Tensor:
        return self.final(carried["x"], carried["c"])
