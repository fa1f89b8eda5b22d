"""SiT (arXiv 2401.08740): DiT's shape, but a velocity, t in [0, 1], q and k normed. The blocks are an nn.Sequential."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sincos_2d, sinusoid


class Mlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU(approximate="tanh")
        self.drop1 = nn.Dropout(drop)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.norm(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qk_norm: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        assert dim % num_heads == 0, "dim should be divisible by num_heads"
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, c)))


class SiTBlock(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, hidden_size * mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size, bias=True))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        mod = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + mod[2] * self.attn(torch.addcmul(mod[0], self.norm1(x), 1 + mod[1]))
        return x + mod[5] * self.mlp(torch.addcmul(mod[3], self.norm2(x), 1 + mod[4]))


class ConditionedSequential(nn.Sequential):
    """A sequence whose members take the condition too."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for module in self:
            x = module(x, c)
        return x


class SiT(nn.Module):
    def __init__(self, input_size: int = 8, hidden_size: int = 32, depth: int = 5, num_classes: int = 10) -> None:
        super().__init__()
        self.depth = depth
        self.patch_size, self.channels = 2, 4
        self.grid = input_size // self.patch_size
        self.x_embedder = nn.Linear(self.channels * self.patch_size**2, hidden_size)
        self.pos_embed = nn.Parameter(sincos_2d(hidden_size, self.grid, self.grid)[None], requires_grad=False)
        self.t_embedder = nn.Sequential(nn.Linear(32, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.y_embedder = nn.Embedding(num_classes + 1, hidden_size)
        self.blocks = ConditionedSequential(*[SiTBlock(hidden_size, 2) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.adaLN_final = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.linear_final = nn.Linear(hidden_size, self.channels * self.patch_size**2)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (*(block.adaLN_modulation[-1] for block in self.blocks), self.adaLN_final[-1], self.linear_final):
            nn.init.zeros_(layer.weight)

    def patchify(self, x: Tensor) -> Tensor:
        b, c, p, g = x.shape[0], self.channels, self.patch_size, self.grid
        return x.view(b, c, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, c * p * p)

    def unpatchify(self, x: Tensor) -> Tensor:
        b, c, p, g = x.shape[0], self.channels, self.patch_size, self.grid
        return x.view(b, g, g, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, g * p, g * p)

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        return self.t_embedder(sinusoid(t * 1000, 32).to(self.pos_embed.dtype)) + self.y_embedder(y)

    def final(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_final(c)[:, None].chunk(2, dim=-1)
        return self.linear_final(torch.addcmul(shift, self.norm_final(x), 1 + scale))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(self.patchify(x)) + self.pos_embed
        c = self.condition(t, y)
        x = self.blocks(x, c)
        return self.unpatchify(self.final(x, c))

    def enter(self, x: Tensor, t: Tensor, y: Tensor) -> Carried:
        return {"x": self.x_embedder(self.patchify(x)) + self.pos_embed, "c": self.condition(t, y)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for i in range(first, last):
            x = self.blocks[i](x, carried["c"])
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return self.unpatchify(self.final(carried["x"], carried["c"]))
