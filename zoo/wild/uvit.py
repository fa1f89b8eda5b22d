"""U-ViT (arXiv 2209.12152): time and label are tokens, and the second half of the blocks joins the first half's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Carried, sinusoid


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class UViT(nn.Module):
    """With `late_cut`, as published, the extra tokens are cut off only after the last norm and linear layer.

    Then whatever stands in for the trunk has to give them too, so that they belong to the stream.
    """

    def __init__(self, late_cut: bool = False, img_size: int = 8, embed_dim: int = 24, depth: int = 5) -> None:
        super().__init__()
        self.depth = depth
        self.embed_dim = embed_dim
        self.in_chans, self.patch_size = 3, 2
        self.late_cut = late_cut
        self.extras = 2  # tokens at the front: time, label
        tokens = (img_size // self.patch_size) ** 2
        self.patch_embed = nn.Conv2d(self.in_chans, embed_dim, self.patch_size, stride=self.patch_size)
        self.label_emb = nn.Embedding(10, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + tokens, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.in_blocks = nn.ModuleList([Block(embed_dim, 2) for _ in range(depth // 2)])
        self.mid_block = Block(embed_dim, 2)
        self.out_blocks = nn.ModuleList([Block(embed_dim, 2, skip=True) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, self.patch_size**2 * self.in_chans)
        self.final_layer = nn.Conv2d(self.in_chans, self.in_chans, 3, padding=1)

    def embed(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        time_token = sinusoid(timesteps, self.embed_dim).to(x.dtype).unsqueeze(1)
        x = torch.cat((time_token, x), dim=1)
        x = torch.cat((self.label_emb(y).unsqueeze(1), x), dim=1)
        return x + self.pos_embed

    def decode(self, x: Tensor) -> Tensor:
        if not self.late_cut:
            x = x[:, self.extras :, :]
        x = self.decoder_pred(self.norm(x))
        if self.late_cut:
            x = x[:, self.extras :, :]
        b, p, side = x.shape[0], self.patch_size, int(x.shape[1] ** 0.5)
        x = x.view(b, side, side, p, p, self.in_chans).permute(0, 5, 1, 3, 2, 4)
        return self.final_layer(x.reshape(b, self.in_chans, side * p, side * p))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        x = self.embed(x, timesteps, y)
        skips = []
        for blk in self.in_blocks:
            x = blk(x)
            skips.append(x)
        x = self.mid_block(x)
        for blk in self.out_blocks:
            x = blk(x, skips.pop())
        return self.decode(x)

    def enter(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Carried:
        return self.parted(self.embed(x, timesteps, y), [])

    def parted(self, x: Tensor, skips: list[Tensor]) -> Carried:
        front = 0 if self.late_cut else self.extras
        return {"x": x[:, front:], "extras": x[:, :front], "skips": skips}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, skips = torch.cat([carried["extras"], carried["x"]], dim=1), list(carried["skips"])
        half = len(self.in_blocks)
        for i in range(first, last):
            if i < half:
                x = self.in_blocks[i](x)
                skips.append(x)
            elif i == half:
                x = self.mid_block(x)
            else:
                x = self.out_blocks[i - half - 1](x, skips.pop())
        return self.parted(x, skips)

    def leave(self, carried: Carried) -> Tensor:
        return self.decode(torch.cat([carried["extras"], carried["x"]], dim=1))
