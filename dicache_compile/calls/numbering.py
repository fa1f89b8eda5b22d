"""Numbers for unnamed calls that share a timestep, such as the two of guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Prompts = tuple[Tensor, ...]


@dataclass(slots=True)
class Numbering:
    """Numbers the unnamed calls that share a timestep: "0", "1", ..."""

    time: Tensor | None = None
    calls: list[Prompts] = field(default_factory=list)  # the prompts of this timestep's calls so far
    most: int = 0  # calls that a timestep has had, once one is done
    latents: Tensor | None = None  # of this step's first call, inside a run
    # Timesteps for which stream "0" may still hold another request's anchors: what looked like a generation given up
    # may have been a second request with the same prompt. Its steps run deep until both anchors are its own.
    doubt: int = 0
    failed: bool = False  # whether the last call did: then it comes again, or all calls of its step do

    def next(self, time: Tensor, prompts: Prompts, at_start: Callable[[], bool]) -> str:
        """The stream of a call at this timestep (of any shape) with these prompts, where nobody announced a run.

        `at_start()`: whether the streams have done no other timestep yet. Then the same prompts again are not another
        stream but another generation, the one before having been given up after its first step.
        """
        if not self._same(time):
            self.doubt = max(0, self.doubt - 1)
        elif self.failed:
            self._come_again(prompts)
        elif prompts and any(_equal(prompts, earlier) for earlier in self.calls) and at_start():
            self.calls, self.doubt = [], 3
        return self._take(prompts)

    def next_of_run(self, time: Tensor, prompts: Prompts, latents: Tensor | None) -> str:
        """The same inside a run, where two steps in a row may have equal timesteps.

        A step is over where it has had as many calls as one ever had, and the first one's prompts come again with
        other latents; those of a second call of guidance are the same.
        """
        again = self._same(time) and bool(self.calls) and len(self.calls) >= self.most
        if self.failed:
            self._come_again(prompts)
        elif again and _equal(prompts, self.calls[0]) and self._has_moved(latents):
            self.most, self.calls = len(self.calls), []
        if not self.calls:
            self.latents = latents.detach().clone() if latents is not None else None
        return self._take(prompts)

    def _has_moved(self, latents: Tensor | None) -> bool:
        """Whether the latents are others than those of the step's first call; where none are known, after one step."""
        if latents is None or self.latents is None:
            return self.most > 0
        return latents.shape != self.latents.shape or not torch.equal(latents, self.latents)

    def reset(self) -> None:
        self.time, self.latents, self.calls, self.most, self.doubt, self.failed = None, None, [], 0, 0, False

    def _come_again(self, prompts: Prompts) -> None:
        """After a call that failed the next one has the number of this step's call with the same prompts; of other
        prompts, or of the same in all calls, it is the first of its step.
        """
        place = next((place for place, earlier in enumerate(self.calls) if _equal(prompts, earlier)), 0)
        self.calls, self.failed = self.calls[:place], False

    def _same(self, time: Tensor) -> bool:
        """Whether this is still the timestep of the last call; notes it if not."""
        if self.time is not None and _alike(self.time, time):
            return True
        self.time = time.detach().clone()
        self.most, self.calls, self.failed = max(self.most, len(self.calls)), [], False
        return False

    def _take(self, prompts: Prompts) -> str:
        self.calls.append(prompts)
        return str(len(self.calls) - 1)


def _alike(time: Tensor, other: Tensor) -> bool:
    """Whether two timesteps are one. Of guidance's calls one may have a larger batch than another."""
    if time.shape == other.shape:
        return torch.equal(time, other)  # all of it: the largest of a vector may stand still
    if not time.numel() or not other.numel():
        return False
    return all(a.item() == b.item() for a, b in zip(time.aminmax(), other.aminmax(), strict=True))


def _equal(prompts: Prompts, others: Prompts) -> bool:
    pairs = list(zip(prompts, others, strict=False))
    return len(prompts) == len(others) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
