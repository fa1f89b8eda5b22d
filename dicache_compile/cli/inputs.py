"""What well-known diffusers classes are called with: shapes at the size that their pipelines make by default.

Only here, for the command: nothing that cuts a graph knows the name of a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .answer import Mistake


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor."""

    shape: tuple[int | str, ...]  # numbers, and names of fields of the model's config; "a|b": b where a is None
    kind: str = ""  # a dtype's name; "": that of the weights
    only: str = ""  # a field of the model's config without which it has no such input


def _flux(width: str, axes: int, **more: Any) -> dict[str, Any]:
    """Of 1024 x 1024 pixels, packed into 64 x 64 tokens, with their places along so many axes."""
    return {
        "hidden_states": Input((1, 4096, "in_channels")),
        "encoder_hidden_states": Input((1, 512, width)),
        "timestep": Input((1,)),
        "img_ids": Input((4096, axes)),
        "txt_ids": Input((512, axes)),
        **more,
    }


_GUIDANCE = Input((1,), only="guidance_embeds")
_POOLED = Input((1, "pooled_projection_dim"))
_LONG = Input((1,), "int64")

KNOWN: dict[str, Mapping[str, Any]] = {
    "AuraFlowTransformer2DModel": {
        "hidden_states": Input((1, "in_channels", 128, 128)),
        "encoder_hidden_states": Input((1, 256, "joint_attention_dim")),
        "timestep": Input((1,)),
    },
    "ChromaTransformer2DModel": _flux("joint_attention_dim", 3),
    "CogVideoXTransformer3DModel": {  # 49 frames of 720 x 480
        "hidden_states": Input((1, 13, "in_channels", 60, 90)),
        "encoder_hidden_states": Input((1, "max_text_seq_length", "text_embed_dim")),
        "timestep": _LONG,
        "ofs": Input((1,), only="ofs_embed_dim"),
    },
    "Flux2Transformer2DModel": _flux("joint_attention_dim", 4, guidance=_GUIDANCE),
    "FluxTransformer2DModel": _flux("joint_attention_dim", 3, pooled_projections=_POOLED, guidance=_GUIDANCE),
    "HunyuanVideoTransformer3DModel": {  # 129 frames of 1280 x 720
        "hidden_states": Input((1, "in_channels", 33, 90, 160)),
        "encoder_hidden_states": Input((1, 256, "text_embed_dim")),
        "encoder_attention_mask": Input((1, 256)),
        "pooled_projections": _POOLED,
        "timestep": _LONG,
        "guidance": _GUIDANCE,
    },
    "LTXVideoTransformer3DModel": {  # 161 frames of 704 x 512
        "hidden_states": Input((1, 21 * 16 * 22, "in_channels")),
        "encoder_hidden_states": Input((1, 128, "caption_channels")),
        "encoder_attention_mask": Input((1, 128)),
        "timestep": _LONG,
        "num_frames": 21,
        "height": 16,
        "width": 22,
    },
    "MochiTransformer3DModel": {  # 19 frames of 848 x 480
        "hidden_states": Input((1, "in_channels", 4, 60, 106)),
        "encoder_hidden_states": Input((1, 256, "text_embed_dim")),
        "encoder_attention_mask": Input((1, 256), "bool"),
        "timestep": _LONG,
    },
    "PixArtTransformer2DModel": {
        "hidden_states": Input((1, "in_channels", "sample_size", "sample_size")),
        "encoder_hidden_states": Input((1, 300, "caption_channels|cross_attention_dim")),
        "encoder_attention_mask": Input((1, 300)),
        "timestep": _LONG,
        "added_cond_kwargs": {"resolution": Input((1, 2)), "aspect_ratio": Input((1, 1))},
    },
    "QwenImageTransformer2DModel": {
        "hidden_states": Input((1, 4096, "in_channels")),
        "encoder_hidden_states": Input((1, 512, "joint_attention_dim")),
        "encoder_hidden_states_mask": Input((1, 512), "bool"),
        "timestep": Input((1,)),
        "img_shapes": [[(1, 64, 64)]],
        "guidance": _GUIDANCE,
    },
    "SD3Transformer2DModel": {
        "hidden_states": Input((1, "in_channels", "sample_size", "sample_size")),
        "encoder_hidden_states": Input((1, 333, "joint_attention_dim")),
        "pooled_projections": _POOLED,
        "timestep": Input((1,)),
    },
    "SanaTransformer2DModel": {
        "hidden_states": Input((1, "in_channels", "sample_size", "sample_size")),
        "encoder_hidden_states": Input((1, 300, "caption_channels")),
        "encoder_attention_mask": Input((1, 300)),
        "timestep": Input((1,)),
        "guidance": _GUIDANCE,
    },
    "WanTransformer3DModel": {  # 81 frames of 832 x 480
        "hidden_states": Input((1, "in_channels", 21, 60, 104)),
        "encoder_hidden_states": Input((1, 512, "text_dim")),
        "encoder_hidden_states_image": Input((1, 257, "image_dim"), only="image_dim"),
        "timestep": _LONG,
    },
}


def inputs(model: Any, given: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments of one call of a diffusers model.

    `given` are "name=1x4096x64" or "name=1:int64"; they are added to those that the class is known with, or take their
    place. Raises Mistake for a shape that cannot be read, and where nothing is known and nothing given.
    """
    name, config = type(model).__name__, model.config
    parameters = inspect.signature(model.forward).parameters
    found = {**KNOWN.get(name, {}), **dict(map(_shape, given))}
    if not found:
        raise Mistake(
            f"it is not known what {name} is called with: give the shapes, as in --input hidden_states=1x16x64x64 "
            f"(it takes {', '.join(parameters)}), or a factory, module:factory. Known are {', '.join(KNOWN)}"
        )
    for unknown in found.keys() - parameters.keys():
        raise Mistake(f"--input {unknown}: {name} takes {', '.join(parameters)}")
    return {
        key: _tensors(value, config, dtype)
        for key, value in found.items()
        if not (isinstance(value, Input) and value.only and not config.get(value.only))
    }


def _shape(text: str) -> tuple[str, Input]:
    name, _, rest = text.partition("=")
    shape, _, kind = rest.partition(":")
    numbers = shape.split("x")
    if not name or not all(number.isdigit() for number in numbers):
        raise Mistake(f"--input {text}: expected NAME=SHAPE or NAME=SHAPE:DTYPE, as in --input timestep=1:int64")
    if kind and not isinstance(getattr(torch, kind, None), torch.dtype):
        raise Mistake(f"--input {text}: {kind!r} is no dtype of torch")
    return name, Input(tuple(map(int, numbers)), kind)


def _tensors(value: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(one, config, dtype) for key, one in value.items()}
    return _tensor(value, config, dtype) if isinstance(value, Input) else value


def _tensor(known: Input, config: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    shape = [_size(size, config) if isinstance(size, str) else size for size in known.shape]
    # Ones: no size, index or mask that a model reads from them is out of range.
    return torch.ones(shape, dtype=getattr(torch, known.kind) if known.kind else dtype)


def _size(names: str, config: Mapping[str, Any]) -> int:
    for name in names.split("|"):
        if (size := config.get(name)) is not None:
            return int(size)
    raise Mistake(f"the model's config has no {names}: give it, as in --model {names.split('|')[0]}=32")
