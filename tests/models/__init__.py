"""Small transformers of every form that a trunk takes, with their parts callable one by one for the oracle.

`forward` is `leave(run(enter(...), 0, depth))`; the oracle calls the same three on its own. `run` carries a dict whose
"x" is the denoised stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Carried = dict[str, Any]


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """[B] to [B, width]."""
    frequency = torch.exp(-torch.arange(width // 2, device=timestep.device) / (width // 2) * 4.0)
    angle = timestep.float()[:, None] * frequency * 10
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One stream, modulated by the timestep."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(functional.silu(time))[:, None].chunk(3, dim=-1)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift)
        return x + self.mlp(self.norm(x))


class SkipBlock(Block):
    """Joins its stream with an earlier one first, as the second half of a U-ViT does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.join = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, time: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(self.join(torch.cat((x, skip), dim=-1)), time)


class DoubleBlock(nn.Module):
    """Two streams, image and text, that meet in one attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 4 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Linear(width, width)
        self.text_mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate, text_gate = self.modulation(functional.silu(time))[:, None].chunk(4, dim=-1)
        joint = torch.cat((self.norm(text), self.norm(x) * (1 + scale) + shift), dim=1)
        mixed = self.attention(joint)
        text_mixed, mixed = mixed[:, : text.shape[1]], mixed[:, text.shape[1] :]
        x = x + gate * mixed
        text = text + text_gate * text_mixed
        return x + self.mlp(self.norm(x)), text + self.text_mlp(self.norm(text))


class Model(nn.Module):
    """What all have in common: latents [B, T, C] and timestep [B] in, velocity [B, T, C] out, a prompt [B, P, C]."""

    depth: int

    def __init__(self, channels: int = 4, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.embed_prompt = nn.Linear(channels, width)
        self.embed_time = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.unembed = nn.Linear(width, channels)
        self.width = width

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Carried:
        pooled = self.embed_prompt(prompt).mean(1)
        time = self.embed_time(sinusoid(timestep, self.width).to(hidden_states.dtype)) + pooled
        return {"x": self.embed(hidden_states), "time": time, "text": self.embed_prompt(prompt), "skips": []}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        raise NotImplementedError

    def leave(self, carried: Carried) -> Tensor:
        scale, shift = self.modulation_out(carried["time"])[:, None].chunk(2, dim=-1)
        return self.unembed(self.norm_out(carried["x"]) * (1 + scale) + shift)

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> Tensor:
        return self.leave(self.run(self.enter(hidden_states, timestep, prompt, *more), 0, self.depth))


class SingleStream(Model):
    """A DiT: one list of one-stream blocks."""

    def __init__(self, depth: int = 4, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.blocks = nn.ModuleList(Block(self.width, 2) for _ in range(depth))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for block in self.blocks[first:last]:
            x = block(x, carried["time"])
        return {**carried, "x": x}


class TwoStream(Model):
    """An MM-DiT: one list of two-stream blocks."""

    def __init__(self, depth: int = 3, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.joint_blocks = nn.ModuleList(DoubleBlock(self.width, 2) for _ in range(depth))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, text = carried["x"], carried["text"]
        for block in self.joint_blocks[first:last]:
            x, text = block(x, text, carried["time"])
        return {**carried, "x": x, "text": text}


class Mixed(Model):
    """A FLUX: two-stream blocks, then one-stream blocks over text and image in one sequence."""

    def __init__(self, depth: int = 4, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.double_blocks = nn.ModuleList(DoubleBlock(self.width, 2) for _ in range(depth // 2))
        self.single_blocks = nn.ModuleList(Block(self.width, 2) for _ in range(depth - depth // 2))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, text = carried["x"], carried["text"]
        for block in self.double_blocks[first:last]:
            x, text = block(x, text, carried["time"])
        singles = self.single_blocks[max(0, first - len(self.double_blocks)) : max(0, last - len(self.double_blocks))]
        joint = torch.cat((text, x), dim=1)
        for block in singles:
            joint = block(joint, carried["time"])
        text, x = joint[:, : text.shape[1]], joint[:, text.shape[1] :]
        return {**carried, "x": x, "text": text}


class Skips(Model):
    """A U-ViT: the second half of the blocks joins what the first half left, across the cut too."""

    def __init__(self, depth: int = 4, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.down = nn.ModuleList(Block(self.width, 2) for _ in range(depth - depth // 2))
        self.up = nn.ModuleList(SkipBlock(self.width, 2) for _ in range(depth // 2))

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, skips = carried["x"], list(carried["skips"])
        for position in range(first, last):
            if position < len(self.down):
                x = self.down[position](x, carried["time"])
                skips.append(x)
            else:
                x = self.up[position - len(self.down)](x, carried["time"], skips.pop())
        return {**carried, "x": x, "skips": skips}


class Controlled(SingleStream):
    """Operands from outside are added after each block, as ControlNet residuals are; in place, as some do."""

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> Carried:
        return {**super().enter(hidden_states, timestep, prompt), "control": more[0]}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for position in range(first, last):
            if position:  # what is added after the probe belongs to the deep blocks, after the trunk to the epilogue
                x += carried["control"][position - 1]
            x = self.blocks[position](x, carried["time"])
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        x = carried["x"]
        x += carried["control"][-1]
        return super().leave({**carried, "x": x})


ALL = (SingleStream, TwoStream, Mixed, Skips, Controlled)


def make(kind: type[Model], dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: int) -> Model:
    torch.manual_seed(seed)
    return kind(**sizes).to(dtype).eval().requires_grad_(False)


def inputs(model: Model, step: int, steps: int, seed: int = 0, tokens: int = 6, batch: int = 2) -> tuple[Any, ...]:
    """The arguments of one step: latents that move a little from step to step, and a prompt that does not."""
    dtype, channels, width = model.unembed.weight.dtype, model.embed.in_features, model.width
    generator = torch.Generator().manual_seed(1000 * seed)
    start = torch.randn(batch, tokens, channels, generator=generator)
    drift = torch.randn(batch, tokens, channels, generator=generator)
    prompt = torch.randn(batch, 3, channels, generator=generator)
    control = torch.randn(model.depth, batch, tokens, width, generator=generator)
    share = step / steps
    latents = start + 0.5 * share * drift + 0.1 * torch.sin(7 * share * drift)
    timestep = torch.full((batch,), 1 - share)
    more = ([c.to(dtype) * 0.1 * (1 + share) for c in control],) if isinstance(model, Controlled) else ()
    return (latents.to(dtype), timestep, prompt.to(dtype), *more)
