"""A DiT with mixtures of experts (DiT-MoE, arXiv 2407.11633): two of four experts for each token, and a shared one.

The routing is dense: every expert sees every token and the gate weighs with zeros, so no shape depends on data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sinusoid


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class MoEGate(nn.Module):
    """[B, N, C] to the weight of each expert, [B, N, E]; all but `top_k` are zero."""

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores = functional.linear(x, self.weight).softmax(dim=-1)
        weight, index = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        weight = weight / (weight.sum(dim=-1, keepdim=True) + 1e-20)
        return torch.zeros_like(scores).scatter(-1, index, weight)


class SparseMoeBlock(nn.Module):
    def __init__(self, dim: int, num_experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList([SwiGLU(dim, dim) for _ in range(num_experts)])
        self.gate = MoEGate(dim, num_experts, top_k)
        self.shared_experts = SwiGLU(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate(x)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y = y + weight[..., i, None] * expert(x)
        return y + self.shared_experts(x)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (self.num_heads, -1)) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        attn = functional.softmax(scores.float(), dim=-1).type_as(q)
        return self.wo(torch.einsum("bhqk,bkhd->bqhd", attn, v).flatten(2))


class MoEBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.moe = SparseMoeBlock(dim)
        self.ada = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        mod = self.ada(functional.silu(c)).reshape(c.shape[0], 6, 1, -1)
        x = x + mod[:, 2] * self.attn(self.norm1(x) * (1 + mod[:, 1]) + mod[:, 0])
        return x + mod[:, 5] * self.moe(self.norm2(x) * (1 + mod[:, 4]) + mod[:, 3])


class MoEDiT(nn.Module):
    def __init__(self, side: int = 8, dim: int = 24, depth: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.depth, self.dim, self.patch, self.channels = depth, dim, 2, 4
        self.patchify = nn.PixelUnshuffle(self.patch)
        self.embed = nn.Linear(self.channels * self.patch**2, dim)
        self.pos = nn.Parameter(torch.randn(1, (side // self.patch) ** 2, dim) * 0.02)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(num_classes + 1, dim)
        self.layers = nn.ModuleList([MoEBlock(dim, 2) for _ in range(depth)])
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, self.channels * self.patch**2)
        self.unpatchify = nn.PixelShuffle(self.patch)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.leave(self.run(self.enter(x, t, y), 0, self.depth))

    def enter(self, x: Tensor, t: Tensor, y: Tensor) -> Carried:
        tokens = self.patchify(x).flatten(2).mT
        c = self.time(sinusoid(t, self.dim).to(x.dtype)) + self.label(y)
        return {"x": self.embed(tokens) + self.pos, "c": c, "size": (x.shape[-2] // 2, x.shape[-1] // 2)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, c = carried["x"], carried["c"]
        for layer in self.layers[first:last]:
            x = layer(x, c)
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return self.unpatchify(self.out(self.norm(carried["x"])).mT.unflatten(2, carried["size"]))
