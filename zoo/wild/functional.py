"""A trunk of plain functions over stacked parameters, preconditioned as in EDM (arXiv 2206.00364). No block module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sinusoid


def norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],))


def attention(x: Tensor, w_qkv: Tensor, w_out: Tensor, heads: int) -> Tensor:
    b, n, c = x.shape
    q, k, v = (x @ w_qkv).view(b, n, heads, 3, c // heads).permute(3, 0, 2, 1, 4)
    attn = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * (c // heads) ** -0.5, dim=-1)
    return torch.matmul(attn, v).transpose(1, 2).reshape(b, n, c) @ w_out


def mlp(x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor, b_down: Tensor) -> Tensor:
    return functional.gelu(x @ w_up + b_up) @ w_down + b_down


class FunctionalDiT(nn.Module):
    """Sound tokens [B, N, C], noise level sigma [B], prompt [B, P, C']; gives the denoised tokens."""

    def __init__(
        self, channels: int = 6, dim: int = 24, depth: int = 5, tokens: int = 12, prompt_dim: int = 12
    ) -> None:
        super().__init__()
        self.depth, self.heads, self.sigma_data = depth, 2, 0.5

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / shape[-2] ** 0.5)

        self.w_embed = weight(channels, dim)
        self.pos = nn.Parameter(torch.randn(tokens, dim) * 0.1)
        self.w_noise = weight(dim, dim)
        self.w_prompt = weight(prompt_dim, dim)
        self.w_mod = nn.Parameter(torch.zeros(depth, dim, 6 * dim))
        self.w_qkv = weight(depth, dim, 3 * dim)
        self.w_out = weight(depth, dim, dim)
        self.w_up = weight(depth, dim, 2 * dim)
        self.b_up = nn.Parameter(torch.zeros(depth, 2 * dim))
        self.w_down = weight(depth, 2 * dim, dim)
        self.b_down = nn.Parameter(torch.zeros(depth, dim))
        self.w_unembed = weight(dim, channels)

    def condition(self, sigma: Tensor, prompt: Tensor) -> Tensor:
        noise = sinusoid(sigma.log() / 4, self.w_noise.shape[0]).to(prompt.dtype)
        return functional.silu(noise @ self.w_noise + (prompt @ self.w_prompt).mean(1))

    def block(self, i: int, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (c @ self.w_mod[i]).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * attention(norm(x) * (1 + scale_a) + shift_a, self.w_qkv[i], self.w_out[i], self.heads)
        hidden = norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * mlp(hidden, self.w_up[i], self.b_up[i], self.w_down[i], self.b_down[i])

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        return self.leave(self.run(self.enter(x, sigma, prompt), 0, self.depth))

    def enter(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Carried:
        s = sigma[:, None, None].to(x.dtype)
        total = s**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, s * self.sigma_data / total.sqrt(), 1 / total.sqrt()
        tokens = (c_in * x) @ self.w_embed + self.pos
        return {"x": tokens, "c": self.condition(sigma, prompt), "skip": c_skip * x, "c_out": c_out}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, c = carried["x"], carried["c"]
        for i in range(first, last):
            x = self.block(i, x, c)
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return carried["skip"] + carried["c_out"] * (norm(carried["x"]) @ self.w_unembed)
