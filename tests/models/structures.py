"""Small random denoisers of many structures, of which it is known where each block begins and ends.

A `Structure` says how a model is written: what holds its blocks, how it writes residuals, how its tensors are laid out,
how text and image meet. `Structured` is that model, and can be run block by block, which the oracle does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, CHANNELS, SIDE, TEXT = 8, 3, 3, 4  # tokens of the image: SIDE * SIDE
TOKENS = SIDE * SIDE
Carried = dict[str, Any]


@dataclass(frozen=True)
class Structure:
    """How a model is written."""

    holds: Literal["list", "sequential", "dict", "attributes", "parts", "apart", "functional"] = "list"
    residual: Literal[
        "plus", "iadd", "add_", "reversed", "addcmul", "lerp", "outer", "scaled", "double", "out", "clone", "gated"
    ] = "plus"
    layout: Literal["btc", "tbc", "bhwc", "axial", "bct", "rolled", "sorted"] = "btc"
    meeting: Literal["cross", "double", "single", "double_single"] = "cross"
    image_first: bool = False
    text: int = TEXT  # tokens; as many as the image has, too
    refined: Literal["none", "text", "image", "both"] = "none"
    leaves: Literal["slice", "narrow", "narrow_named", "split", "chunk", "norm_slice", "view"] = "slice"
    skips: bool = False  # not where tokens change their order: it would be another model
    time: Literal["vector", "scalar", "columns"] = "vector"
    depth: int = 4

    def __str__(self) -> str:
        """What differs from the plainest model."""
        plain = Structure()
        changed = [f for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)]
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in changed) or "plain"


def choices() -> dict[str, tuple[Any, ...]]:
    """What each field of a structure may be."""
    hints = get_type_hints(Structure)
    found = {name: get_args(hint) or (False, True) for name, hint in hints.items()}
    return {**found, "text": (TEXT, TOKENS), "depth": (2, 3, 4)}


class Branch(nn.Module):
    """What a residual adds: attention over its tokens and a context, or an MLP; shifted by the time."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes
        self.norm = nn.LayerNorm(WIDTH)
        self.shift = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Linear(WIDTH, 3 * WIDTH if mixes else 2 * WIDTH)
        self.outer = nn.Linear(WIDTH if mixes else 2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, T, C], [B, C] and, for a context, [B, P, C] to [B, T, C]."""
        normed = self.norm(x) + self.shift(time)[:, None]
        if not self.mixes:
            return self.outer(functional.gelu(self.inner(normed)))
        joint = normed if context is None else torch.cat((context, normed), dim=1)
        q, k, v = self.inner(joint).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.outer(mixed[:, joint.shape[1] - x.shape[1] :])


class DoubleBranch(nn.Module):
    """Text and image in one attention, each with its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Branch(mixes=True)

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.both(torch.cat((text, x), dim=1), time)
        return mixed[:, text.shape[1] :], mixed[:, : text.shape[1]]


def add(x: Tensor, f: Tensor, form: str) -> Tensor:
    """The residual x + f (or near to it), written in one of many ways."""
    match form:
        case "iadd":
            x += f
            return x
        case "add_":
            return x.add_(f)
        case "reversed":
            return torch.add(f, x)
        case "addcmul":
            return torch.addcmul(x, f, torch.full_like(f, 0.5))
        case "lerp":
            return torch.lerp(x, f, 0.25)
        case "scaled":
            return x * 0.9 + f
        case "double":
            return (x.double() + f).to(f.dtype)
        case "out":
            result = torch.empty_like(x)
            torch.add(x, f, out=result)
            return result
        case "clone":
            result = x.clone()
            result.add_(f)
            return result
        case "gated":
            return x + torch.tanh(f.mean(1, keepdim=True)) * f
    return x + f


class Block(nn.Module):
    """One block over one sequence."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.attention, self.mlp = Branch(mixes=True), Branch(mixes=False)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        if self.form == "outer":  # the caller adds x
            mixed = self.attention(x, time, context)
            return mixed + self.mlp(x + mixed, time)
        x = add(x, self.attention(x, time, context), self.form)
        return add(x, self.mlp(x, time), self.form)


class DoubleBlock(nn.Module):
    """One block over image and text, each with a stream of its own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = "plus" if form == "outer" else form
        self.attention = DoubleBranch()
        self.mlp, self.text_mlp = Branch(mixes=False), Branch(mixes=False)

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        mixed, text_mixed = self.attention(x, text, time)
        x, text = add(x, mixed, self.form), add(text, text_mixed, self.form)
        return add(x, self.mlp(x, time), self.form), add(text, self.text_mlp(text, time), self.form)


class Structured(nn.Module):
    """Latents [B, T, CHANNELS], a timestep and a prompt [B, P, CHANNELS] to [B, T, CHANNELS]."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = s = structure
        self.embed, self.embed_text = nn.Linear(CHANNELS, WIDTH), nn.Linear(CHANNELS, WIDTH)
        self.embed_time = nn.Linear(WIDTH, WIDTH)
        self.norm_out, self.unembed = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.text_refiner = nn.ModuleList(Block("plus") for _ in range(2 if s.refined in ("text", "both") else 0))
        self.image_refiner = nn.ModuleList(Block("plus") for _ in range(2 if s.refined in ("image", "both") else 0))
        self.doubles = self._doubles()
        self.register_buffer("order", torch.randperm(TOKENS))
        self.register_buffer("places", torch.argsort(self.order))
        if s.skips:
            self.joins = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(s.depth // 2))
        blocks = [Block(s.residual) for _ in range(s.depth - self.doubles)]
        self._hold([DoubleBlock(s.residual) for _ in range(self.doubles)], blocks)

    def _doubles(self) -> int:
        """How many blocks have two streams."""
        return {"double": self.structure.depth, "double_single": self.structure.depth // 2}.get(
            self.structure.meeting, 0
        )

    def _hold(self, doubles: list[DoubleBlock], blocks: list[Block]) -> None:
        self.double_blocks = nn.ModuleList(doubles)
        match self.structure.holds:
            case "sequential":
                self.blocks = nn.Sequential(*blocks)
            case "dict":
                self.blocks = nn.ModuleDict({f"block{i}": block for i, block in enumerate(blocks)})
            case "attributes":
                for i, block in enumerate(blocks):
                    setattr(self, f"block{i}", block)
            case "parts":
                self.blocks = nn.ModuleList(nn.ModuleList((b.attention, b.mlp)) for b in blocks)
            case "apart":
                self.attentions = nn.ModuleList(block.attention for block in blocks)
                self.mlps = nn.ModuleList(block.mlp for block in blocks)
            case "functional":
                names = [name for name, _ in Block("plus").named_parameters()]
                self.names = names
                self.weights = nn.ParameterDict(
                    {
                        f"{i}_{name.replace('.', '_')}": parameter
                        for i, block in enumerate(blocks)
                        for name, parameter in block.named_parameters()
                    }
                )
            case _:
                self.blocks = nn.ModuleList(blocks)

    def _run_block(self, place: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        form = self.structure.residual
        match self.structure.holds:
            case "dict":
                block = self.blocks[f"block{place}"]
            case "attributes":
                block = getattr(self, f"block{place}")
            case "parts" | "apart":
                if self.structure.holds == "parts":
                    attention, mlp = self.blocks[place]
                else:
                    attention, mlp = self.attentions[place], self.mlps[place]
                form = "plus" if form == "outer" else form
                x = add(x, attention(x, time, context), form)
                return add(x, mlp(x, time), form)
            case "functional":
                return self._functional(place, x, time, context)
            case _:
                block = self.blocks[place]
        result = block(x, time, context)
        return x + result if form == "outer" else result

    def _functional(self, place: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        def weight(name: str) -> Tensor:
            return self.weights[f"{place}_{name.replace('.', '_')}"]

        def linear(part: str, value: Tensor) -> Tensor:
            return functional.linear(value, weight(f"{part}.weight"), weight(f"{part}.bias"))

        def normed(part: str, value: Tensor) -> Tensor:
            norm = functional.layer_norm(value, (WIDTH,), weight(f"{part}.norm.weight"), weight(f"{part}.norm.bias"))
            return norm + linear(f"{part}.shift", time)[:, None]

        form = "plus" if self.structure.residual == "outer" else self.structure.residual
        joint = normed("attention", x) if context is None else torch.cat((context, normed("attention", x)), dim=1)
        q, k, v = linear("attention.inner", joint).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = add(x, linear("attention.outer", mixed[:, joint.shape[1] - x.shape[1] :]), form)
        return add(x, linear("mlp.outer", functional.gelu(linear("mlp.inner", normed("mlp", x)))), form)

    def enter(self, latents: Tensor, timestep: Tensor, prompt: Tensor) -> Carried:
        angle = timestep.float().reshape(latents.shape[0] if timestep.dim() else 1, -1)[:, :1]
        angle = angle * torch.arange(1, WIDTH // 2 + 1, device=latents.device)
        time = self.embed_time(torch.cat((angle.sin(), angle.cos()), dim=-1)).expand(latents.shape[0], -1)
        x, text = self.embed(latents), self.embed_text(prompt)
        for block in self.text_refiner:
            text = block(text, time)
        place = -len(self.image_refiner)  # its blocks may be taken for the trunk's first ones
        carried = {"x": self._stored(x), "text": text, "time": time, "place": place, "left": (), "joint": False}
        return self._joined(carried) if self.structure.meeting == "single" and not place else carried

    def step(self, carried: Carried) -> Carried:
        """One block more."""
        s, place, time = self.structure, carried["place"], carried["time"]
        x, text, left = self._read(carried["x"]), carried["text"], carried["left"]
        if place < 0:
            carried = {**carried, "x": self._stored(self.image_refiner[place](x, time)), "place": place + 1}
            return self._joined(carried) if s.meeting == "single" and place == -1 else carried
        if s.skips and place >= s.depth - s.depth // 2 and place >= self.doubles and left:
            x = self.joins[place - (s.depth - s.depth // 2)](torch.cat((x, left[-1]), dim=-1))
            left = left[:-1]
        if place < self.doubles:
            x, text = self.double_blocks[place](x, text, time)
        else:
            x = self._run_block(place - self.doubles, x, time, text if s.meeting == "cross" else None)
        x = self._turned(x)
        if s.skips and self.doubles <= place < s.depth // 2:
            left = (*left, x)
        carried = {**carried, "x": self._stored(x), "text": text, "left": left, "place": place + 1}
        return self._joined(carried) if s.meeting == "double_single" and place + 1 == self.doubles else carried

    def _joined(self, carried: Carried) -> Carried:
        text = self._stored(carried["text"])
        parts = (carried["x"], text) if self.structure.image_first else (text, carried["x"])
        return {**carried, "x": torch.cat(parts, dim=self.token_dim), "joint": True}

    @property
    def token_dim(self) -> int:
        """Which dimension of what goes from block to block has the tokens."""
        return {"tbc": 0, "bct": 2}.get(self.structure.layout, 1)

    def _stored(self, x: Tensor) -> Tensor:
        """[B, T, C] as it goes from block to block."""
        match self.structure.layout:
            case "tbc":
                return x.transpose(0, 1)
            case "bct":
                return x.transpose(1, 2).contiguous()
            case "bhwc" if x.shape[1] == TOKENS and self.structure.meeting not in ("single", "double_single"):
                return x.unflatten(1, (SIDE, SIDE))
        return x

    def _read(self, x: Tensor) -> Tensor:
        """The reverse."""
        match self.structure.layout:
            case "tbc":
                return x.transpose(0, 1)
            case "bct":
                return x.transpose(1, 2)
            case "bhwc" if x.dim() == 4:
                return x.flatten(1, 2)
        return x

    def _turned(self, x: Tensor) -> Tensor:
        """A block's result, whose tokens may stand in another order for the next one: rows are columns, say."""
        if x.shape[1] != TOKENS:
            return x
        match self.structure.layout:
            case "axial":
                return x.unflatten(1, (SIDE, SIDE)).transpose(1, 2).flatten(1, 2)
            case "rolled":
                return x.roll(1, dims=1)
            case "sorted":
                return x.index_select(1, self.order)
        return x

    def _turned_back(self, x: Tensor) -> Tensor:
        match self.structure.layout:
            case "axial":
                return x.unflatten(1, (SIDE, SIDE)).transpose(1, 2).flatten(1, 2)
            case "rolled":
                return x.roll(-1, dims=1)
            case "sorted":
                return x.index_select(1, self.places)
        return x

    def _turns(self, carried: Carried) -> int:
        """How often the image was turned: never while it was in one sequence with the text."""
        return max(0, min(carried["place"], self.doubles) if carried["joint"] else carried["place"])

    def in_order(self, carried: Carried) -> tuple[Tensor, Tensor]:
        """(image, all tokens) of what is carried, [B, T, C], with its tokens where they stood at the start."""
        joint = self._read(carried["x"])
        image = self._image(joint, "slice") if carried["joint"] else joint
        for _ in range(self._turns(carried)):
            image = self._turned_back(image)
        return image.clone(), joint.clone()

    def replaced(self, carried: Carried, image: Tensor) -> Carried:
        """What is carried with another image, whose tokens stand as at the start."""
        for _ in range(self._turns(carried)):
            image = self._turned(image)
        if not carried["joint"]:
            return {**carried, "x": self._stored(image)}
        joint = self._read(carried["x"]).clone()
        self._image(joint, "slice").copy_(image)
        return {**carried, "x": self._stored(joint)}

    def leave(self, carried: Carried) -> Tensor:
        x, s = self._read(carried["x"]), self.structure
        if carried["joint"]:
            x = self._image(x, s.leaves)
        if s.leaves == "view":
            return self.unembed(self.norm_out(x.reshape(-1, WIDTH))).view(x.shape[0], -1, CHANNELS)
        return self.unembed(self.norm_out(x))

    def _image(self, joint: Tensor, leaves: str) -> Tensor:
        length = joint.shape[1] - self.structure.text
        first = self.structure.image_first
        start = 0 if first else self.structure.text
        match leaves:
            case "narrow":
                return joint.narrow(1, start, length)
            case "narrow_named":
                return joint.narrow(dim=1, start=start, length=length)
            case "split":
                return (
                    joint.split((length, start or joint.shape[1] - length), dim=1)[0]
                    if first
                    else (joint.split((start, length), dim=1)[1])
                )
            case "chunk" if length == self.structure.text:
                return joint.chunk(2, dim=1)[0 if first else 1]
            case "norm_slice":
                joint = self.norm_out(joint)
        return joint[:, :length] if first else joint[:, start:]

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        carried = self.enter(hidden_states, timestep, prompt)
        while carried["place"] < self.structure.depth:
            carried = self.step(carried)
        return self.leave(carried)


def make(structure: Structure, seed: int = 0) -> Structured:
    """A model with random weights; with several calls of a seed the same."""
    torch.manual_seed(seed)
    model = Structured(structure)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.35)
    return model.eval().requires_grad_(False)


def inputs(structure: Structure, step: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of one step: latents that move a little, a prompt that does not."""
    generator = torch.Generator().manual_seed(0)
    start, drift = (torch.randn(2, TOKENS, CHANNELS, generator=generator) for _ in range(2))
    prompt = torch.randn(2, structure.text, CHANNELS, generator=generator)
    time = torch.tensor(1 - step / steps)
    shaped = {"vector": time.expand(2).clone(), "scalar": time, "columns": time.expand(2, 1).clone()}
    return start + step / steps * drift, shaped[structure.time], prompt


class Oracle:
    """Reuses the last residual, in plain PyTorch: y = x + R of the last deep step, each token at its own place."""

    def __init__(self, model: Structured, blocks: int) -> None:
        """`blocks`: how many the trunk is taken to have, those of an image refiner among them or not."""
        self.model, self.blocks = model, blocks
        self.residual: Tensor | None = None
        self.before: tuple[Tensor, ...] | None = None  # what the probe gave on the last step: image, joint, text

    @torch.no_grad()
    def __call__(self, arguments: tuple[Tensor, ...], deep: bool) -> tuple[Tensor, set[float]]:
        """(the model's result, the errors that its probe may show: of the image, of all tokens, or the larger)."""
        model = self.model
        carried = model.enter(*(argument.clone() for argument in arguments))
        while carried["place"] < model.structure.depth - self.blocks:
            carried = model.step(carried)
        x, _ = model.in_order(carried)
        carried = model.step(carried)
        h, joint = model.in_order(carried)
        text = carried["text"].clone()
        while carried["place"] < model.structure.depth:
            carried = model.step(carried)
        y, _ = model.in_order(carried)
        if deep:
            self.residual = y - x
        else:
            carried = model.replaced(carried, x + self.residual)
        return model.leave(carried), self._errors(h, joint, text)

    def _errors(self, *now: Tensor) -> set[float]:
        before, self.before = self.before, now
        if before is None:
            return set()
        image, joint, text = (float((a - b).abs().mean() / b.abs().mean()) for a, b in zip(now, before, strict=True))
        return {image, joint, max(image, text)}
