"""Trains the shapes FLUX with flow matching: `python -m bench.shapes.train`.

Coarse to fine: the first steps go to 16 x 16 pictures, at a quarter of the cost, the rest to 32 x 32. The loss curve
goes to `weights/loss.jsonl`, the averaged weights to `weights/flux.safetensors` in float16, and a sheet of samples
beside them. `--resume` goes on from those weights and adds to the curve.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import CONFIG, SIZE, WEIGHTS, conditioning, generate, pack
from .pictures import COLOURS, SHAPES, render

EMA_DECAY = 0.998
WARM_UP = 100  # optimizer steps


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One line of the loss curve."""

    step: int
    size: int  # pixels a side
    minutes: float
    loss: float  # mean squared error of the velocity, averaged since the line before


def flow_matching_loss(model: torch.nn.Module, size: int, batch: int, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity `noise - picture` at a logit-normal time (Esser et al. 2024, section 3)."""
    pictures = render(batch, size, generator)
    clean = pack(pictures.pixels)
    noise = torch.randn(clean.shape, generator=generator)
    time_ = torch.sigmoid(torch.randn(batch, generator=generator))
    mixed = torch.lerp(clean, noise, time_[:, None, None])
    inputs = conditioning(pictures.shape, pictures.colour, size)
    velocity = model(hidden_states=mixed, timestep=time_, return_dict=False, **inputs)[0]
    return torch.nn.functional.mse_loss(velocity, noise - clean)


def optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "blocks" in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(seed: int, coarse: int, fine: int, batch: int, rate: float, resume: bool) -> None:
    """`coarse` and `fine` are numbers of optimizer steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = FluxTransformer2DModel(**CONFIG)
    if resume:
        model.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay)
    compiled = torch.compile(model, dynamic=False)
    optims = optimizers(model, rate)
    WEIGHTS.parent.mkdir(exist_ok=True)
    curve = WEIGHTS.with_name("loss.jsonl").open("a" if resume else "w")
    started, recent = time.monotonic(), []
    for step in range(1, coarse + fine + 1):
        size = SIZE // 2 if step <= coarse else SIZE
        # Warm-up, then a cosine down to a twentieth.
        factor = min(1.0, step / WARM_UP) * (0.525 + 0.475 * math.cos(math.pi * step / (coarse + fine)))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = rate * factor
        loss = flow_matching_loss(compiled, size, batch, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        recent.append(loss.item())
        if step % 50 == 0 or step == coarse:
            minutes = round((time.monotonic() - started) / 60, 2)
            point = LossPoint(step, size, minutes, sum(recent) / len(recent))
            print(json.dumps(asdict(point)), file=curve, flush=True)
            print(point, flush=True)
            recent = []
        if step % 200 == 0 or step == coarse + fine:
            save(averaged.module, size)


def save(model: FluxTransformer2DModel, size: int) -> None:
    """Writes the weights, and a sheet of one picture for each shape (row) and colour (column)."""
    state = {name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    save_file(state, WEIGHTS)
    from PIL import Image

    model.eval()
    sheet = generate(model, list(itertools.product(SHAPES, COLOURS)), seed=0, size=size)
    rows = sheet.unflatten(0, (len(SHAPES), len(COLOURS))).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((rows + 1) * 127.5).round().byte().numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * 256 // (2 * size), image.height * 256 // (2 * size)), Image.Resampling.NEAREST).save(
        WEIGHTS.with_name("sheet.png")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coarse", type=int, default=5300, help="steps on 16 x 16 pictures")
    parser.add_argument("--fine", type=int, default=1300, help="steps on 32 x 32 pictures")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from the weights that are there")
    arguments = parser.parse_args()
    train(arguments.seed, arguments.coarse, arguments.fine, arguments.batch, arguments.rate, arguments.resume)
