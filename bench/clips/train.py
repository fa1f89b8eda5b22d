"""Trains the clips Wan with flow matching: `python -m bench.clips.train`.

Short to long: the first steps see two frames, a quarter of the tokens, the rest whole clips. The loss curve goes to
`weights/loss.jsonl`, the averaged weights to `weights/wan.safetensors` in float16, and a sheet of sampled clips beside
them. `--resume` goes on from those weights and adds to the curve.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from torch import Tensor, nn

from ..shapes.pictures import COLOURS, SHAPES
from ..training import Stage, train, velocity_loss
from .clips import FRAMES, MOTIONS, render
from .model import CONFIG, WEIGHTS, Prompt, generate, words

SHORT = 2  # frames of the first stage
UNPROMPTED = 0.1  # share of clips that are learnt without their prompt, for guidance
TOWARDS_NOISE = 0.5  # mean of the time's logit: at 256 tokens a clip is clear long before its noise is gone


def loss(frames: int, batch: int, model: nn.Module, generator: torch.Generator) -> Tensor:
    clips = render(batch, generator, frames)
    prompts = words(clips.shape, clips.colour, clips.motion)
    prompts *= torch.rand(batch, 1, 1, generator=generator) >= UNPROMPTED

    def velocity(mixed: Tensor, moment: Tensor) -> Tensor:
        return model(
            hidden_states=mixed, timestep=1000 * moment, encoder_hidden_states=prompts, return_dict=False
        )[0]  # fmt: skip

    return velocity_loss(clips.pixels, generator, velocity, TOWARDS_NOISE)


def draw(frames: int, model: nn.Module) -> None:
    """A sheet of sampled clips: a clip a row, its frames from left to right."""
    pairs = zip(SHAPES * 2, list(COLOURS) * 2, list(MOTIONS) * 2, strict=False)
    clips = generate(model, [Prompt(*words) for words in pairs], seed=0, frames=frames)
    pixels = ((clips.permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1) + 1) * 127.5).round().byte().numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * 3, image.height * 3), Image.Resampling.NEAREST).save(WEIGHTS.with_name("sheet.png"))


def initial() -> WanTransformer3DModel:
    model = WanTransformer3DModel(**CONFIG)
    nn.init.zeros_(model.proj_out.weight)  # so that the first steps learn from a zero velocity, not from a random one
    return model


def stage(frames: int, steps: int, batch: int) -> Stage:
    return Stage(f"{frames} frames", steps, partial(loss, frames, batch), partial(draw, frames))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", type=int, default=2500, help="steps on clips of two frames")
    parser.add_argument("--long", type=int, default=2500, help="steps on whole clips")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from the weights that are there")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train(
        initial(),
        [stage(SHORT, arguments.short, 64), stage(FRAMES, arguments.long, 32)],
        WEIGHTS,
        seed=arguments.seed,
        rate=arguments.rate,
        resume=arguments.resume,
    )
