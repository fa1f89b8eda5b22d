"""Recorded generations, which can be gone through again step by step with other results of the model.

Between two steps a sampler adds up what it has: with which factors is read from the recording (`sums`). So nothing of
the sampler runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DiCacheConfig
from .standing import Place, Standing, standing
from .sums import MOST, Call, Course, Factors, Passed, Take, disturbed, passed, read, summed
from .taps import Inputs, Taps

_REPEATED = 1e-3  # how far two runs of one seed may be apart, of their size
_NOISE = "noise that the function's seed does not tell: tune without"


@dataclass(frozen=True)
class Rehearsal:
    """Recorded generations of one model, and how its sampler goes on from a step."""

    pieces: Taps
    takes: tuple[Take, ...]
    factors: tuple[Factors, ...]  # of each step; of the last one only where the function returns latents
    of_channel: tuple[int, ...] = ()  # the clusters of channels that have weights of their own; (): all have the same

    @property
    def num_steps(self) -> int:
        return len(self.takes[0].steps)

    def latents(self, take: Take, step: int) -> Tensor:
        """What a step was given to denoise: float32."""
        assert self.pieces.latents is not None
        found: Tensor = take.steps[step][0].inputs[self.pieces.latents]
        return found.float()

    def passed(self, take: Take, step: int) -> Passed:
        """A step as it was recorded."""
        return passed(self.latents(take, step), [call.result for call in take.steps[step]])

    def moved(self, step: int, steps: Sequence[Passed]) -> Tensor:
        """What steps give of the next latents, the newest first; a last step without factors has those before it."""
        return summed(self.factors[min(step, len(self.factors) - 1)], steps)

    def off(self, take: Take, step: int, steps: Sequence[Passed]) -> Tensor:
        """How far the next latents are from the recorded ones, after these steps, the newest first."""
        differences = [one.minus(self.passed(take, step - age)) for age, one in enumerate(steps)]
        return self.moved(step, differences)

    def residuals(self) -> Iterator[Tensor]:
        """What the first call of the first generation adds to the first carried value, on one step after the other."""
        count = len(self.pieces.carried)
        for calls in self.takes[0].steps:
            _, *ends = self.pieces.whole(*calls[0].inputs)
            yield ends[-count].float() - ends[0].float()

    def inputs(self, take: Take, step: int, call: int, latents: Tensor) -> list[Any]:
        """What a call is given with other latents."""
        found, place = list(take.steps[step][call].inputs), self.pieces.latents
        assert place is not None
        found[place] = latents.to(found[place].dtype)
        return found


def rehearse(
    model: nn.Module,
    run: Callable[[int], Any],
    seeds: Sequence[int],
    config: DiCacheConfig,
    tick: Callable[[], object] = lambda: None,
) -> Rehearsal:
    """Runs a user's function uncached with each seed, and keeps what its calls of the model were given and gave.

    Raises ValueError where the model was not called, is not cut, or is called by a sampler whose steps are no sums.
    """
    kept: list[Taps] = []
    with standing(model, config) as stand, torch.no_grad():
        found = []
        for seed in seeds:
            found.append(_recorded(stand, run, seed, kept))
            tick()
        _check(stand.refused, found, kept)
        rehearsal = Rehearsal(kept[-1], tuple(found), ())
        factors, why_not = read(_course(rehearsal), 1)
        enough = rehearsal.num_steps - 1
        if len(factors) == enough and _returns_latents(rehearsal):  # which it clips, perhaps
            again = _recorded(stand, run, seeds[0], kept).result.float()
            if (again - found[0].result.float()).norm() > _REPEATED * again.norm():
                raise ValueError(f"two runs of one seed differ. There is {_NOISE}")
        elif len(factors) < enough:  # it adds noise, or looks back
            rehearsal = Rehearsal(kept[-1], (_recorded(stand, run, seeds[0], kept, disturbed), found[0]), ())
            _check(stand.refused, rehearsal.takes, kept)
            factors, why_not = read(_differences(rehearsal), MOST)
    if len(factors) < enough:
        raise ValueError(
            f"{why_not}, not with those of {MOST - 1} steps before either. It may take a result's size, as rescaled "
            f"guidance and thresholding do, or {_NOISE}"
        )
    return Rehearsal(kept[-1], tuple(found), factors)


def _recorded(
    stand: Standing,
    run: Callable[[int], Any],
    seed: int,
    kept: list[Taps],
    change: Callable[[Tensor, int, int], Tensor] | None = None,
) -> Take:
    """One generation; `change`: what the function gets in place of a result, of its step and call."""
    steps: list[list[Call]] = []
    shared: dict[tuple[int, int], Any] = {}

    def keep(place: Place, pieces: Taps, inputs: Inputs) -> Any:
        kept.append(pieces)
        outputs = pieces.whole(*inputs)[0]
        if place.step == len(steps):
            steps.append([])
        own = [_own(value, at, pieces, shared, place.call) for at, value in enumerate(inputs)]
        if change is not None:
            outputs = (change(outputs[0], *place), *outputs[1:])
        steps[place.step].append(Call(own, outputs[0].clone()))
        return outputs

    stand.handler = keep
    stand.begin()
    result = run(seed)
    return Take(seed, tuple(map(tuple, steps)), result)


def _own(value: Any, at: int, pieces: Taps, shared: dict[tuple[int, int], Any], call: int) -> Any:
    """A copy of an input, as its owner may write to it; one for all steps of what does not change."""
    if not isinstance(value, Tensor) or at in pieces.weights:
        return value
    before = shared.get((at, call))
    if before is None or before.shape != value.shape or not torch.equal(before, value):
        shared[at, call] = value.clone()
    return shared[at, call]


def _check(refused: str | None, takes: Sequence[Take], pieces: Sequence[Taps]) -> None:
    if not takes or not takes[0].steps:
        reason = f"its graph is not cut: {refused}" if refused is not None else "the function did not call it"
        raise ValueError(f"nothing was recorded of the model: {reason}")
    if len(set(map(id, pieces))) > 1:
        raise ValueError("calls of several graphs were recorded: let the function run one shape of one full graph")
    if pieces[0].latents is None:
        raise ValueError("which input is denoised is not known, so a step cannot be tried with others")
    at = pieces[0].latents
    if any(not torch.equal(call.inputs[at], step[0].inputs[at]) for step in takes[0].steps for call in step[1:]):
        raise ValueError(
            "calls with one timestep were given other latents, as by a sampler that looks ahead, so it is not known "
            "which of them make a step: tune with one that calls the model once for each timestep"
        )
    forms = {tuple(len(step) for step in take.steps) for take in takes}
    if len(forms) > 1:
        raise ValueError("the recorded generations differ in their steps or calls: let the function run like ones")


def _returns_latents(rehearsal: Rehearsal) -> bool:
    """Whether the user's function returns what the last step makes of the latents."""
    return all(
        isinstance(take.result, Tensor) and take.result.shape == rehearsal.latents(take, 0).shape
        for take in rehearsal.takes
    )


def _course(rehearsal: Rehearsal) -> Course:
    """What recorded generations tell of the sampler."""
    place, steps = rehearsal.pieces.latents, range(rehearsal.num_steps)
    assert place is not None
    every = tuple(tuple(rehearsal.passed(take, step) for step in steps) for take in rehearsal.takes)
    ends = tuple(take.result.float() for take in rehearsal.takes) if _returns_latents(rehearsal) else ()
    eps = torch.finfo(rehearsal.takes[0].steps[0][0].inputs[place].dtype).eps
    return Course(every, ends, tuple(tuple(one.latents for one in steps) for steps in every), eps)


def _differences(rehearsal: Rehearsal) -> Course:
    """What two generations of one seed tell together: whatever both were given alike is not in it.

    Raises ValueError where they do not begin alike.
    """
    both = _course(rehearsal)
    one, other = both.steps
    if not torch.equal(one[0].latents, other[0].latents):
        raise ValueError("two runs of one seed begin with other latents: let the function draw all by its seed")
    differences = tuple(a.minus(b) for a, b in zip(one, other, strict=True))
    ends = (both.ends[0] - both.ends[1],) if both.ends else ()
    return Course((differences,), ends, both.sizes[:1], both.eps)
