"""The models under `given/`: where each one's trunk is, and where its streams stand. Read from their sources."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from . import given
from .entry import STEPS, At, Carried, Entry

# A loop over the prompts' masks stays in one graph only with these.
CAPTURED = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
COUNTED = {"streams": 1, "num_steps": STEPS}  # no timestep: steps are counted
DOUBLE_SINGLE = ("transformer_blocks", "single_transformer_blocks")

# How the first trunk block is called, and what the first and the last one give back.
FIRST = Carried(x=At(0), h=At(), y=At())
NAMED = Carried(x=At("hidden_states"), h=At(), y=At())
FIRST_OF_PAIR = Carried(x=At(0), h=At(0), y=At(0))
SECOND_OF_PAIR = Carried(x=At(1), h=At(1), y=At(1))
NAMED_THEN_TEXT = Carried(x=At("hidden_states"), h=At(0), y=At(0))
NAMED_AFTER_TEXT = Carried(x=At("hidden_states"), h=At(1), y=At(1))
TEXT_AFTER = Carried(x=At("encoder_hidden_states"), h=At(1), y=At(1))


def _entry(name: str, trunk: str | tuple[str, ...], *streams: Carried, **more: Any) -> Entry:
    return Entry(
        name=name,
        model=given.description(name)["model"],
        build=partial(given.build, name),
        call=partial(given.call, name),
        trunk=(trunk,) if isinstance(trunk, str) else trunk,
        streams=streams,
        **more,
    )


def _behind(count: int) -> Carried:
    """A single sequence of which the model keeps what is behind the first `count` tokens; negative: the last ones."""
    return Carried(x=At(0, start=count), h=At(start=count), y=At(start=count))


def _time_first_to_space_first(tokens: Tensor) -> Tensor:
    """[batch * places, frames, width] to [batch * frames, places, width], or back; the batch is of two."""
    rows, columns, width = tokens.shape
    return tokens.reshape(2, rows // 2, columns, width).transpose(1, 2).reshape(-1, rows // 2, width)


ENTRIES: tuple[Entry, ...] = (
    _entry("ace_step", "layers", NAMED),
    _entry("bria", DOUBLE_SINGLE, NAMED_AFTER_TEXT),
    # The single blocks get text and image in one sequence, text first.
    _entry("chroma", DOUBLE_SINGLE, Carried(x=At("hidden_states"), h=At(1), y=At(start=48))),
    _entry("cogvideox", "transformer_blocks", NAMED_THEN_TEXT),
    _entry("cogview3plus", "transformer_blocks", NAMED_THEN_TEXT),
    # Text and video are joined for the last norm, which treats each token alone; the text is dropped after it.
    _entry("consisid", "transformer_blocks", NAMED_THEN_TEXT, TEXT_AFTER),
    # The text's half is joined to the other for the sake of indices, which here pick vision tokens only.
    _entry(
        "cosmos3",
        "layers",
        SECOND_OF_PAIR,
        FIRST_OF_PAIR,
        latents="vision_tokens.0",
        timestep="vision_timesteps",
    ),
    _entry("dit_transformer2d", "transformer_blocks", FIRST),
    _entry("easyanimate", "transformer_blocks", FIRST_OF_PAIR),
    _entry("flux", DOUBLE_SINGLE, NAMED_AFTER_TEXT),
    _entry("flux2", DOUBLE_SINGLE, Carried(x=At("hidden_states"), h=At(1), y=At(start=48))),
    _entry("glm_image", "transformer_blocks", FIRST_OF_PAIR),
    # Earlier frames stand before the denoised ones, and are cut off at the start of the output norm.
    _entry("helios", "blocks", _behind(-128)),
    # Branches on whether the image is all zero.
    _entry("hunyuan_1_5", "transformer_blocks", FIRST_OF_PAIR, fullgraph=False, dynamo=CAPTURED),
    # Its later blocks join what they are given with an earlier block's, and do not add to it.
    _entry("hunyuan_dit", "blocks", FIRST, config={"carried": "residual"}),
    _entry("hunyuan_video", DOUBLE_SINGLE, FIRST_OF_PAIR),
    # As in helios, but how many tokens the text has depends on its mask: the earlier frames' part is not told apart.
    _entry("hunyuan_video_framepack", DOUBLE_SINGLE, FIRST_OF_PAIR),
    _entry("ideogram4", "layers", FIRST),
    _entry("joyimage_edit_plus", "double_blocks", NAMED_THEN_TEXT),
    _entry("krea2", "transformer_blocks", _behind(4)),
    # Spatial and temporal blocks take turns; between them the tokens of frames and of places change their dimensions.
    _entry(
        "latte",
        ("transformer_blocks", "temporal_transformer_blocks"),
        Carried(x=At(0), h=At(turn=_time_first_to_space_first), y=At(turn=_time_first_to_space_first)),
        paired=True,
    ),
    _entry("longcat_image", DOUBLE_SINGLE, NAMED_AFTER_TEXT),
    _entry("ltx", "transformer_blocks", NAMED),
    # The output norm takes text and image; what follows it keeps the image, whose start may differ within a batch.
    # Counts each caption's tokens and compares the numbers.
    _entry("lumina2", "layers", FIRST, fullgraph=False),
    # Video, audio and text stand in one sequence in any order; both outputs are picked after the output norm.
    _entry("minimax_h3", "transformer_blocks", FIRST),
    # The timestep's token stands first and is cut off after the last block.
    _entry("minimax_music3", "transformer_blocks", _behind(1)),
    _entry("mochi", "transformer_blocks", NAMED_THEN_TEXT),
    _entry("nucleusmoe_image", "transformer_blocks", NAMED),
    _entry("ovis_image", DOUBLE_SINGLE, NAMED_AFTER_TEXT),
    _entry("pixart_transformer2d", "transformer_blocks", FIRST),
    _entry("qwenimage", "transformer_blocks", NAMED_AFTER_TEXT),
    _entry("sana", "transformer_blocks", FIRST),
    _entry("sana_video", "transformer_blocks", FIRST),
    _entry("sd3", "transformer_blocks", NAMED_AFTER_TEXT),
    # The blocks are given the timestep, but plain layer norms do not read it.
    _entry("temporal", "transformer_blocks", FIRST, timestep=None, config=COUNTED),
    _entry("wan", "blocks", FIRST),
    _entry("wan_animate", "blocks", FIRST),
    _entry("wan_vace", "blocks", FIRST),
    # The final layer takes image and text, and its result is cut to the image.
    # The first call of a model enters a `torch.device`, to make the frequencies that later calls find made.
    _entry("z_image", "layers", FIRST, latents="x.0", timestep="t", fullgraph=False),
)
