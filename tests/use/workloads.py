"""What a user of the command has in a file of his own: factories of each form, and some that are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import models

TOKENS = 64  # 8 x 8, which SSIM can look at
NO_FACTORY = 3


def call() -> tuple[Any, ...]:
    print("what a user's code prints")
    model = models.make(models.Mixed)
    return model, models.inputs(model, 0, 8), {}


def named_call() -> tuple[Any, ...]:
    model, args, _ = call()
    return model, dict(zip(("hidden_states", "timestep", "prompt"), args, strict=True))


def sampling() -> tuple[Any, ...]:
    model = models.make(models.Mixed)

    @torch.no_grad()
    def generate(seed: int, steps: int = 8) -> Tensor:
        latents, _, prompt = models.inputs(model, 0, steps, seed, TOKENS)
        for step in range(steps):
            latents = latents - model(latents, torch.full((2,), 1 - step / steps), prompt) / steps
        return latents.transpose(1, 2).unflatten(2, (8, 8))

    return model, generate


def sampling_without_steps() -> tuple[Any, ...]:
    model, generate = sampling()
    return model, lambda seed: generate(seed)


def sampling_that_forgets_its_seed() -> tuple[Any, ...]:
    model, generate = sampling()
    return model, lambda seed: generate(seed) + torch.rand(())


def sampling_of_another_size_each_time() -> tuple[Any, ...]:
    model, generate = sampling()
    sizes = iter(range(1, 100))
    return model, lambda seed: generate(seed).repeat(next(sizes), 1, 1, 1)


def never_calls_its_model() -> tuple[Any, ...]:
    return models.make(models.Mixed), lambda seed: torch.zeros(3)


def not_cached() -> tuple[Any, ...]:
    """With a trunk of one block there is nothing to reuse."""
    model = models.make(models.SingleStream, depth=1)
    return model, models.inputs(model, 0, 8), {}


def sampling_not_cached() -> tuple[Any, ...]:
    model, args, _ = not_cached()
    return model, lambda seed: model(*args)


def pipeline() -> tuple[Any, ...]:
    from tests.use.test_pipelines import flux

    pipe, arguments = flux()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.requires_grad_(False)
    return pipe, {**arguments, "num_inference_steps": 6}


def number() -> int:
    return 3


def raises() -> None:
    raise RuntimeError("no weights [here]\nand more")
