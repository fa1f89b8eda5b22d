"""Step-wise batching: requests come and go between the steps of one model, and each is cached for itself.

model.compile(backend="dicache", options={"rows": "independent", "max_streams": 8})
scheduler = Scheduler(model, at_once=4)
picture = scheduler.add("req-1", noise, prompt, steps=28)
while scheduler.step():
...  # here others may be added, and `picture.cancel()` ends one
picture.result()
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dicache_compile import reset, stream


@dataclass
class Request:
    name: str
    latents: Tensor  # [1, ...]
    prompt: Tensor  # [1, ...]
    sigmas: Tensor  # [steps + 1], from 1 to 0
    done: int = 0
    picture: Future[Tensor] = field(default_factory=Future)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


class Scheduler:
    """Gives every step to the requests that have waited longest, `at_once` of them at most.

    The model takes latents [B, ...], sigmas [B] and prompts [B, ...], and gives velocities.
    """

    def __init__(self, model: nn.Module, at_once: int) -> None:
        self._model, self._at_once = model, at_once
        self._running: list[Request] = []  # those that have waited longest come first

    def add(self, name: str, noise: Tensor, prompt: Tensor, steps: int) -> Future[Tensor]:
        """A request of that many steps, whatever the others have."""
        request = Request(name, noise, prompt, torch.linspace(1, 0, steps + 1))
        self._running.append(request)
        return request.picture

    @torch.no_grad()
    def step(self) -> bool:
        """One call of the model; whether there was anything to do."""
        for one in [one for one in self._running if one.picture.cancelled()]:
            self._running.remove(one)
            reset(self._model, one.name)
        batch, self._running = self._running[: self._at_once], self._running[self._at_once :]
        if not batch:
            return False
        now = torch.stack([one.sigmas[one.done] for one in batch])
        then = torch.stack([one.sigmas[one.done + 1] for one in batch])
        latents, prompts = torch.cat([one.latents for one in batch]), torch.cat([one.prompt for one in batch])
        with stream([one.name for one in batch], num_steps=[one.steps for one in batch]):
            velocities = self._model(latents, now, prompts)
        latents = latents + (then - now).reshape(-1, *[1] * (latents.dim() - 1)) * velocities  # Euler's step
        for one, row in zip(batch, latents.split(1), strict=True):
            one.latents, one.done = row, one.done + 1
            if one.done == one.steps:
                one.picture.set_result(row)
        self._running += [one for one in batch if not one.picture.done()]
        return True
