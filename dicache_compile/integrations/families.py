"""Which of diffusers' model classes the published scripts are of."""

from __future__ import annotations

from typing import Literal

from torch import nn

Preset = Literal["flux", "hunyuan", "wan"]
PUBLISHED: dict[str, Preset] = {
    "FluxTransformer2DModel": "flux",
    "HunyuanVideoTransformer3DModel": "hunyuan",
    "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "wan",
}


def published_preset(model: nn.Module) -> Preset:
    """The preset of a model's class. Raises ValueError where no script of it, or of one it extends, was published."""
    for kind in type(model).__mro__:
        if kind.__name__ in PUBLISHED:
            return PUBLISHED[kind.__name__]
    known = ", ".join(PUBLISHED)
    raise ValueError(
        f"preset='published': no rule was published for {type(model).__name__}, only for {known}. Use quality="
        "'balanced', or one of the presets by its name"
    )
