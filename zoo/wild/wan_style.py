"""A video DiT in Wan's style (arXiv 2503.20314): a list of latents padded to one length, complex RoPE, float32 `e`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sinusoid

Grid = tuple[int, int, int]


def rope_params(max_len: int, dim: int) -> Tensor:
    """[max_len, dim / 2], complex."""
    angles = torch.outer(torch.arange(max_len), 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim))
    return torch.polar(torch.ones_like(angles), angles)


def rope_apply(x: Tensor, grid_sizes: list[Grid], freqs: Tensor) -> Tensor:
    """Turns the heads of each sample [L, N, D] by its own grid; what is padded stays."""
    c = x.shape[-1] // 2
    by_axis = freqs.split([c - 2 * (c // 3), c // 3, c // 3], dim=1)
    output = []
    for i, (f, h, w) in enumerate(grid_sizes):
        seq_len = f * h * w
        x_i = torch.view_as_complex(x[i, :seq_len].float().reshape(seq_len, x.shape[2], -1, 2))
        along = (by_axis[0][:f, None, None], by_axis[1][None, :h, None], by_axis[2][None, None, :w])
        freqs_i = torch.cat([part.expand(f, h, w, -1) for part in along], dim=-1).reshape(seq_len, 1, -1)
        x_i = torch.view_as_real(x_i * freqs_i).flatten(2)
        output.append(torch.cat([x_i.to(x.dtype), x[i, seq_len:]]))
    return torch.stack(output)


class WanAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        b, n, d = x.shape[0], self.num_heads, x.shape[2] // self.num_heads
        source, mask = x if context is None else context, None
        q = self.norm_q(self.q(x)).view(b, -1, n, d)
        k = self.norm_k(self.k(source)).view(b, -1, n, d)
        v = self.v(source).view(b, -1, n, d)
        if context is None:  # self-attention
            q, k = (rope_apply(part, kwargs["grid_sizes"], kwargs["freqs"]) for part in (q, k))
            mask = torch.arange(k.shape[1], device=k.device) < kwargs["seq_lens"][:, None, None, None]
        x = functional.scaled_dot_product_attention(*(u.transpose(1, 2) for u in (q, k, v)), attn_mask=mask)
        return self.o(x.transpose(1, 2).flatten(2))


class WanBlock(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.self_attn = WanAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.cross_attn = WanAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Tensor, e: Tensor, seq_lens: Tensor, grid_sizes: list[Grid], freqs: Tensor, context: Tensor
    ) -> Tensor:
        assert e.dtype == torch.float32
        e0, e1, e2, e3, e4, e5 = (self.modulation.float() + e).chunk(6, dim=1)
        y = (self.norm1(x).float() * (1 + e1) + e0).type_as(x)
        y = self.self_attn(y, seq_lens=seq_lens, grid_sizes=grid_sizes, freqs=freqs)
        x = (x.float() + y.float() * e2).type_as(x)
        x = x + self.cross_attn(self.norm3(x), context)
        y = self.ffn((self.norm2(x).float() * (1 + e4) + e3).type_as(x))
        return (x.float() + y.float() * e5).type_as(x)


class WanStyle(nn.Module):
    def __init__(self, dim: int = 24, depth: int = 4, text_dim: int = 12, text_len: int = 6) -> None:
        super().__init__()
        self.depth, self.dim, self.text_len, self.patch_size = depth, dim, text_len, (1, 2, 2)
        self.patch_embedding = nn.Conv3d(4, dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(16, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList([WanBlock(dim, 2 * dim, 2) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.head = nn.Linear(dim, 4 * 4)
        self.head_modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        c = dim // 4  # complex numbers in a head
        # No buffer: `.to(dtype)` would ruin it.
        self.freqs = torch.cat([rope_params(32, 2 * s) for s in (c - 2 * (c // 3), c // 3, c // 3)], dim=1)

    def embed(
        self, x: list[Tensor] | Tensor, t: Tensor, context: list[Tensor], seq_len: int
    ) -> tuple[Tensor, Tensor, Carried]:
        """The padded stream, e for the head, and what every block is given."""
        if self.freqs.device != self.head.weight.device:
            self.freqs = self.freqs.to(self.head.weight.device)
        x = [self.patch_embedding(u.unsqueeze(0)) for u in x]
        grid_sizes = [tuple(u.shape[2:]) for u in x]
        x = [u.flatten(2).transpose(1, 2) for u in x]
        seq_lens = torch.tensor([u.size(1) for u in x], device=x[0].device)
        x = torch.cat([functional.pad(u, (0, 0, 0, seq_len - u.size(1))) for u in x])
        e = self.time_embedding(sinusoid(t, 16).type_as(x))
        e0 = self.time_projection(e).unflatten(1, (6, self.dim)).float()
        context = torch.stack([functional.pad(u, (0, 0, 0, self.text_len - u.size(0))) for u in context])
        context = self.text_embedding(context)
        kwargs = {"e": e0, "seq_lens": seq_lens, "grid_sizes": grid_sizes, "freqs": self.freqs, "context": context}
        return x, e.float(), kwargs

    def unpatchify(self, x: Tensor, e: Tensor, grid_sizes: list[Grid]) -> list[Tensor]:
        shift, scale = (self.head_modulation.float() + e.unsqueeze(1)).chunk(2, dim=1)
        x = self.head((self.norm(x).float() * (1 + scale) + shift).type_as(x))
        out = []
        for u, (f, h, w) in zip(x, grid_sizes, strict=True):
            u = u[: f * h * w].view(f, h, w, *self.patch_size, 4)
            out.append(torch.einsum("fhwpqrc->cfphqwr", u).reshape(4, f, 2 * h, 2 * w))
        return out

    def forward(self, x: list[Tensor] | Tensor, t: Tensor, context: list[Tensor], seq_len: int) -> list[Tensor]:
        x, e, kwargs = self.embed(x, t, context, seq_len)
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.unpatchify(x, e, kwargs["grid_sizes"])

    def enter(self, x: list[Tensor] | Tensor, t: Tensor, context: list[Tensor], seq_len: int) -> Carried:
        return dict(zip(("x", "e", "kwargs"), self.embed(x, t, context, seq_len), strict=True))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for i in range(first, last):
            x = self.blocks[i](x, **carried["kwargs"])
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> list[Tensor]:
        return self.unpatchify(carried["x"], carried["e"], carried["kwargs"]["grid_sizes"])
