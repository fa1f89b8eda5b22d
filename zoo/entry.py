"""One model of the zoo, and what a person who read its source knows of its trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]
STEPS = 8  # of a generation in the tests


@dataclass(frozen=True, slots=True)
class At:
    """Where a stream stands among the arguments or the results of a block."""

    item: int | str | None = None  # argument by place or name, item of a result tuple; None: the result itself
    start: int = 0  # of the stream's part along `dim`, in tokens; negative counts from the end
    length: int | None = None  # None: to the end
    dim: int = 1
    turn: Callable[[Tensor], Tensor] | None = None  # from this block's layout to that of x, and back

    def of(self, whole: Tensor) -> Tensor:
        """The stream's part of what stands here, as a view where `turn` is None."""
        if self.turn is not None:
            return self.turn(whole)
        start = self.start % whole.shape[self.dim] if self.start else 0
        return whole.narrow(self.dim, start, whole.shape[self.dim] - start if self.length is None else self.length)

    def replace(self, whole: Tensor, part: Tensor) -> Tensor:
        """What stands here with another value of the stream's part."""
        if self.turn is not None:
            return self.turn(part)
        changed = whole.clone()
        self.of(changed).copy_(part)
        return changed


@dataclass(frozen=True, slots=True)
class Carried:
    """One stream that a trunk carries: where it enters the first block, leaves it (the probe), leaves the last."""

    x: At
    h: At
    y: At


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the zoo. `trunk` and `streams` were read from its source by a person, not found by the package."""

    name: str  # "flux"
    model: str  # "FluxTransformer2DModel"
    build: Callable[[], nn.Module]  # random weights, the same on every call; eval mode, no gradients
    call: Callable[[], Call]  # the keyword arguments of one forward call, the same on every call
    trunk: tuple[str, ...] = ()  # module paths of the ModuleLists that hold the blocks, in the order in which they run
    streams: tuple[Carried, ...] = ()  # the denoised one first
    latents: str = "hidden_states"  # the argument that is denoised; "x.0" is the first item of the list `x`
    timestep: str | None = "timestep"
    config: Mapping[str, Any] = field(default_factory=dict)  # options that this model needs to be cached
    dynamo: Mapping[str, bool] = field(default_factory=dict)  # settings of torch._dynamo.config that it needs
    refused: str | None = None  # words of the reason why it is not cached, where it is not
    fullgraph: bool = True  # whether Dynamo makes one graph of it
    paired: bool = False  # whether the entries of two lists take turns, and are one block together

    def at_step(self, step: int, steps: int) -> Call:
        """The call of one step: latents that move a little from step to step and a timestep that falls."""
        call = self.call()
        share = step / steps
        _change(call, self.latents, lambda latents: _moved(latents, share))
        if self.timestep is not None:
            _change(call, self.timestep, lambda time: _lower(time, share))
        return call


def _moved(latents: Tensor, share: float) -> Tensor:
    if not latents.is_floating_point():
        return latents
    generator = torch.Generator().manual_seed(7)
    drift = torch.randn(latents.shape, generator=generator)
    return (latents + 0.5 * share * drift + 0.1 * torch.sin(7 * share * drift)).to(latents.dtype)


def _lower(time: Tensor, share: float) -> Tensor:
    if time.is_floating_point():
        return time * (1 - 0.9 * share) + (1 - share)
    return torch.full_like(time, int(900 * (1 - share)) + 1)


def _change(call: Any, path: str, change: Callable[[Tensor], Tensor]) -> None:
    *outer, last = path.split(".")
    for key in outer:
        call = call[int(key) if key.isdigit() else key]
    place = int(last) if last.isdigit() else last
    call[place] = change(call[place])
