"""Small denoisers in the style of research repositories, each written from its architecture's published description.

Besides `forward` each has its parts for an oracle in plain PyTorch: `enter(**call)` gives a dict whose "x" is the
denoised stream, `run(carried, first, last)` runs some of its `depth` blocks, and `leave(carried)` gives the result.
Where `run` joins other tokens to the stream, "x" is the stream's part alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..entry import At, Call, Carried, Entry
from .dit import DiT
from .functional import FunctionalDiT
from .mmdit import MMDiT
from .moe_dit import MoEDiT
from .parallel_dit import ParallelDiT
from .parts import settled
from .pixart import PixArt
from .robot_policy import TransformerForDiffusion
from .sit import SiT
from .uvit import UViT
from .video_dit import VideoDiT
from .wan_style import WanStyle


def _built(kind: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return settled(kind(**options))

    return build


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labelled(channels: int, time: str = "t") -> Call:
    return {"x": _noise(2, channels, 8, 8), time: torch.tensor([600, 600]), "y": torch.tensor([3, 7])}


def _sit() -> Call:
    # A time of 0 is moved through all of [0, 1] by `at_step`.
    return {"x": _noise(2, 4, 8, 8), "t": torch.zeros(2), "y": torch.tensor([3, 7])}


def _mmdit() -> Call:
    return {
        "x": _noise(2, 4, 8, 8),
        "timesteps": torch.tensor([600, 600]),
        "context": _noise(2, 5, 12, seed=2),
        "y": _noise(2, 12, seed=3),
    }


def _pixart() -> Call:
    return {
        "x": _noise(2, 4, 8, 6),
        "timestep": torch.tensor([600, 600]),
        "y": _noise(2, 1, 5, 12, seed=2),
        "mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
        "data_info": {
            "img_hw": torch.tensor([[64.0, 48.0], [64.0, 48.0]]),
            "aspect_ratio": torch.tensor([[4 / 3], [4 / 3]]),
        },
    }


def _video() -> Call:
    return {"x": _noise(2, 4, 4, 6, 6), "timestep": torch.tensor([600, 600]), "y": _noise(2, 5, 12, seed=2)}


def _wan() -> Call:
    return {
        "x": [_noise(4, 3, 4, 4), _noise(4, 2, 4, 4, seed=4)],  # 12 and 8 tokens, padded to 14
        "t": torch.tensor([600, 600]),
        "context": [_noise(5, 12, seed=2), _noise(3, 12, seed=3)],
        "seq_len": 14,
    }


def _wan_tensor() -> Call:
    return {**_wan(), "x": _noise(2, 4, 3, 4, 4), "seq_len": 12}


def _robot() -> Call:
    return {"sample": _noise(2, 8, 7), "timestep": torch.tensor([60, 60]), "cond": _noise(2, 2, 10, seed=2)}


def _functional() -> Call:
    return {"x": _noise(2, 12, 6), "sigma": torch.tensor([0.8, 0.8]), "prompt": _noise(2, 4, 12, seed=2)}


_FIRST = Carried(x=At(0), h=At(), y=At())  # first argument and only result of a block
_BEHIND_EXTRAS = Carried(x=At(0, start=2), h=At(start=2), y=At(start=2))
_SECOND = Carried(x=At(1), h=At(1), y=At(1))

ENTRIES: tuple[Entry, ...] = (
    Entry("wild_dit", "DiT", _built(DiT), lambda: _labelled(4), ("blocks",), (_FIRST,), "x", "t"),
    Entry("wild_sit", "SiT", _built(SiT), _sit, ("blocks",), (_FIRST,), "x", "t"),
    Entry(
        "wild_uvit",
        "UViT",
        _built(UViT),
        lambda: _labelled(3, "timesteps"),
        ("in_blocks", "out_blocks"),  # and `mid_block`, a module of its own, between the two
        (_BEHIND_EXTRAS,),
        "x",
        "timesteps",
        config={"carried": "residual"},  # its later blocks join what they are given with an earlier one's
    ),
    Entry(
        "wild_uvit_late_cut",
        "UViT",
        _built(UViT, late_cut=True),
        lambda: _labelled(3, "timesteps"),
        ("in_blocks", "out_blocks"),
        (_FIRST,),
        "x",
        "timesteps",
        config={"carried": "residual"},
    ),
    Entry("wild_mmdit", "MMDiT", _built(MMDiT), _mmdit, ("joint_blocks",), (_SECOND,), "x", "timesteps"),
    Entry("wild_pixart", "PixArt", _built(PixArt), _pixart, ("blocks",), (_FIRST,), "x"),
    Entry("wild_video_dit", "VideoDiT", _built(VideoDiT), _video, ("blocks",), (_FIRST,), "x"),
    Entry("wild_wan_style", "WanStyle", _built(WanStyle), _wan, ("blocks",), (_FIRST,), "x.0", "t"),
    Entry("wild_wan_style_tensor", "WanStyle", _built(WanStyle), _wan_tensor, ("blocks",), (_FIRST,), "x", "t"),
    Entry("wild_moe_dit", "MoEDiT", _built(MoEDiT), lambda: _labelled(4), ("layers",), (_FIRST,), "x", "t"),
    Entry(
        "wild_robot_policy",
        "TransformerForDiffusion",
        _built(TransformerForDiffusion),
        _robot,
        ("decoder.layers",),
        (_FIRST,),
        "sample",
    ),
    # These two have no ModuleList to name.
    Entry("wild_parallel_dit", "ParallelDiT", _built(ParallelDiT), lambda: _labelled(4), latents="x", timestep="t"),
    Entry("wild_functional", "FunctionalDiT", _built(FunctionalDiT), _functional, latents="x", timestep="sigma"),
)
