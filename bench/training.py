"""The training loop of the benchmarks' small models: stages of optimizer steps, averaged weights, a loss curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

EMA_DECAY = 0.998
WARM_UP = 100  # optimizer steps
SHOWN = 50  # optimizer steps a line of the curve
SAVED = 200  # optimizer steps a save


@dataclass(frozen=True, slots=True)
class Stage:
    """Optimizer steps that see data of one size."""

    name: str  # for the curve, such as "16 px"
    steps: int
    loss: Callable[[nn.Module, torch.Generator], Tensor]  # of one random batch
    draw: Callable[[nn.Module], object]  # writes samples of the model as it is in this stage


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One line of the loss curve."""

    step: int
    stage: str
    minutes: float
    loss: float  # mean squared error of the velocity, averaged since the line before


def velocity_loss(
    clean: Tensor, generator: torch.Generator, velocity: Callable[[Tensor, Tensor], Tensor], towards_noise: float = 0.0
) -> Tensor:
    """Mean squared error of `velocity(mixed, time)`, which should be `noise - clean`, at a logit-normal time [B].

    Esser et al. 2024, section 3. `towards_noise` is the mean of the time's logit.
    """
    noise = torch.randn(clean.shape, generator=generator)
    moment = torch.sigmoid(towards_noise + torch.randn(len(clean), generator=generator))
    mixed = torch.lerp(clean, noise, moment.view(-1, *[1] * (clean.ndim - 1)))
    return nn.functional.mse_loss(velocity(mixed, moment), noise - clean)


def train(
    model: nn.Module,
    stages: Sequence[Stage],
    weights: Path,
    *,
    seed: int,
    rate: float,
    resume: bool,
) -> None:
    """Trains, and writes float16 weights, `loss.jsonl` beside them, and the stage's samples of the averaged model.

    `rate` is the peak learning rate. `resume` starts from the weights that are there, and adds to the curve.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if resume:
        model.load_state_dict({name: weight.float() for name, weight in load_file(weights).items()})
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_average)
    compiled = torch.compile(model, dynamic=False)
    optims = _optimizers(model, rate)
    total = sum(stage.steps for stage in stages)
    weights.parent.mkdir(exist_ok=True)
    started, recent, step = time.monotonic(), [], 0
    with weights.with_name("loss.jsonl").open("a" if resume else "w") as curve:
        for stage in stages:
            for left in reversed(range(stage.steps)):
                step += 1
                # Warm-up, then a cosine down to a twentieth.
                factor = min(1.0, step / WARM_UP) * (0.525 + 0.475 * math.cos(math.pi * step / total))
                # The matrix products in bfloat16; the CPU's fused attention has a slow backward pass in it.
                with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                    loss = stage.loss(compiled, generator)
                recent.append(_step(model, loss, optims, rate * factor))
                averaged.update_parameters(model)
                if step % SHOWN == 0 or not left:
                    minutes = round((time.monotonic() - started) / 60, 2)
                    point = LossPoint(step, stage.name, minutes, sum(recent) / len(recent))
                    print(json.dumps(asdict(point)), file=curve, flush=True)
                    print(point, flush=True)
                    recent = []
                if step % SAVED == 0 or not left:
                    _save(averaged.module, weights)
                    stage.draw(averaged.module.eval())


@torch.no_grad()
def _average(averaged: list[Tensor], current: list[Tensor], count: int | Tensor) -> None:
    # Over a growing share of the steps so far, then over the last: the first weights would else stay in it for long.
    torch._foreach_lerp_(averaged, current, max(1 - EMA_DECAY, 9 / (10 + int(count))))


def _step(model: nn.Module, loss: Tensor, optims: Sequence[torch.optim.Optimizer], rate: float) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = rate
        optim.step()
        optim.zero_grad(set_to_none=True)
    return loss.item()


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "blocks" in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _save(model: nn.Module, weights: Path) -> None:
    save_file({name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}, weights)
