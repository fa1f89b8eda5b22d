"""Trains the shapes FLUX with flow matching: `python -m bench.shapes.train`.

Coarse to fine: the first steps go to 16 x 16 pictures, at a quarter of the cost, the rest to 32 x 32. The loss curve
goes to `weights/loss.jsonl`, the averaged weights to `weights/flux.safetensors` in float16, and a sheet of samples
beside them. `--resume` goes on from those weights and adds to the curve.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from ..training import Stage, train, velocity_loss
from .model import CONFIG, SIZE, WEIGHTS, conditioning, generate, pack
from .pictures import COLOURS, SHAPES, render


def loss(size: int, batch: int, model: nn.Module, generator: torch.Generator) -> Tensor:
    pictures = render(batch, size, generator)
    inputs = conditioning(pictures.shape, pictures.colour, size)

    def velocity(mixed: Tensor, moment: Tensor) -> Tensor:
        return model(hidden_states=mixed, timestep=moment, return_dict=False, **inputs)[0]

    return velocity_loss(pack(pictures.pixels), generator, velocity)


def draw(size: int, model: nn.Module) -> None:
    """A sheet of one picture for each shape (row) and colour (column)."""
    sheet = generate(model, list(itertools.product(SHAPES, COLOURS)), seed=0, size=size)
    rows = sheet.unflatten(0, (len(SHAPES), len(COLOURS))).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    image = Image.fromarray(((rows + 1) * 127.5).round().byte().numpy())
    scale = 4 * SIZE // size
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
        WEIGHTS.with_name("sheet.png")
    )


def stage(size: int, steps: int, batch: int) -> Stage:
    return Stage(f"{size} px", steps, partial(loss, size, batch), partial(draw, size))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coarse", type=int, default=5300, help="steps on 16 x 16 pictures")
    parser.add_argument("--fine", type=int, default=1300, help="steps on 32 x 32 pictures")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from the weights that are there")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train(
        FluxTransformer2DModel(**CONFIG),
        [stage(SIZE // 2, arguments.coarse, arguments.batch), stage(SIZE, arguments.fine, arguments.batch)],
        WEIGHTS,
        seed=arguments.seed,
        rate=arguments.rate,
        resume=arguments.resume,
    )
