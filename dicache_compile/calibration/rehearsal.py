"""Recorded generations, which can be gone through again step by step with another result of the model.

Between two steps a sampler adds up what it has: the next latents are a sum of these latents and the model's results.
With which factors is read from the recording. So nothing of the sampler runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DiCacheConfig
from .standing import Place, standing
from .taps import Inputs, Taps

ALIKE = 1e-3  # of the latents' change: what a sampler's step may be off from a sum, besides the latents' own rounding


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model in a recorded generation."""

    inputs: Inputs
    result: Tensor  # the first output


@dataclass(frozen=True, slots=True)
class Take:
    """One recorded generation."""

    seed: int
    steps: tuple[tuple[Call, ...], ...]  # of each the calls, such as those of guidance
    result: Any  # what the user's function returned


@dataclass(frozen=True)
class Rehearsal:
    """Recorded generations of one model, and how its sampler goes on from a step."""

    pieces: Taps
    takes: tuple[Take, ...]
    # Of each step: of the latents, then of each call's result. Of the last one only where the function returns latents.
    factors: tuple[tuple[float, ...], ...]

    @property
    def num_steps(self) -> int:
        return len(self.takes[0].steps)

    def latents(self, take: Take, step: int) -> Tensor:
        """What a step was given to denoise: float32."""
        assert self.pieces.latents is not None
        found: Tensor = take.steps[step][0].inputs[self.pieces.latents]
        return found.float()

    def moved(self, step: int, latents: Tensor, results: Sequence[Tensor]) -> Tensor:
        """A step's share in the next latents: the sum with its factors; a last step without any has those before it."""
        keep, *of = self.factors[min(step, len(self.factors) - 1)]
        return keep * latents + sum(
            (factor * as_latents(result.float(), latents) for factor, result in zip(of, results, strict=True)),
            torch.zeros_like(latents),
        )

    def off(self, take: Take, step: int, latents: Tensor, results: Sequence[Tensor]) -> Tensor:
        """How far the next latents are from the recorded ones."""
        recorded = [call.result for call in take.steps[step]]
        return self.moved(step, latents, results) - self.moved(step, self.latents(take, step), recorded)

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
    found: list[Take] = []
    kept: list[Taps] = []
    with standing(model, config) as stand, torch.no_grad():
        for seed in seeds:
            steps: list[list[Call]] = []
            shared: dict[tuple[int, int], Any] = {}

            def keep(
                place: Place, pieces: Taps, inputs: Inputs, steps: list[list[Call]] = steps, shared: Any = shared
            ) -> Any:
                kept.append(pieces)
                outputs = pieces.whole(*inputs)[0]
                if place.step == len(steps):
                    steps.append([])
                own = [_own(value, at, pieces, shared, place.call) for at, value in enumerate(inputs)]
                steps[place.step].append(Call(own, outputs[0].clone()))
                return outputs

            stand.handler = keep
            stand.begin()
            result = run(seed)
            tick()
            found.append(Take(seed, tuple(map(tuple, steps)), result))
    _check(stand.refused, found, kept)
    rehearsal = Rehearsal(kept[-1], tuple(found), ())
    return Rehearsal(kept[-1], tuple(found), _factors(rehearsal))


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
    if len(pieces[0].carried) != 1:
        names = ", ".join(value.y.name for value in pieces[0].carried)
        raise ValueError(f"the trunk gives {len(pieces[0].carried)} values ({names}), and weights are fitted for one")
    forms = {tuple(len(step) for step in take.steps) for take in takes}
    if len(forms) > 1:
        raise ValueError("the recorded generations differ in their steps or calls: let the function run like ones")


def as_latents(result: Tensor, latents: Tensor) -> Tensor:
    """A model's result in the latents' shape; further channels that the latents have are of conditions, which stay."""
    if result.shape == latents.shape:
        return result
    differing = [axis for axis, pair in enumerate(zip(result.shape, latents.shape, strict=True)) if pair[0] != pair[1]]
    if result.dim() != latents.dim() or len(differing) != 1 or result.shape[differing[0]] > latents.shape[differing[0]]:
        raise ValueError(f"the model gives {tuple(result.shape)} for latents {tuple(latents.shape)}: expected as many")
    rest = list(latents.shape)
    rest[differing[0]] -= result.shape[differing[0]]
    return torch.cat((result, result.new_zeros(rest)), dim=differing[0])


def _returns_latents(rehearsal: Rehearsal) -> bool:
    """Whether the user's function returns what the last step makes of the latents."""
    return all(
        isinstance(take.result, Tensor) and take.result.shape == rehearsal.latents(take, 0).shape
        for take in rehearsal.takes
    )


def _factors(rehearsal: Rehearsal) -> tuple[tuple[float, ...], ...]:
    """By least squares over all recorded generations."""
    found = []
    place, last = rehearsal.pieces.latents, rehearsal.num_steps - 1
    assert place is not None
    eps = torch.finfo(rehearsal.takes[0].steps[0][0].inputs[place].dtype).eps
    for step in range(last + _returns_latents(rehearsal)):
        rows, targets, sizes = [], [], []
        for take in rehearsal.takes:
            latents = rehearsal.latents(take, step).double()
            after = (take.result if step == last else rehearsal.latents(take, step + 1)).double()
            results = [as_latents(call.result.double(), latents) for call in take.steps[step]]
            moved = results[0] != 0  # not what stands for conditions
            rows.append(torch.stack([part[moved] for part in (latents, *results)], dim=1))
            targets.append((after - latents)[moved])
            sizes.append(after[moved])
        matrix, target = torch.cat(rows), torch.cat(targets)
        solution = torch.linalg.lstsq(matrix, target[:, None]).solution
        left = (matrix @ solution - target[:, None]).norm() / target.norm()
        rounding = eps * torch.cat(sizes).norm() / target.norm()
        if not left <= ALIKE + rounding:
            raise ValueError(
                f"step {step} of the sampler is no sum of its latents and the model's results (off by {left:.1%}), as "
                "of a sampler that adds noise or looks further back: tune with one that does neither, such as Euler"
            )
        keep, *of = solution[:, 0].tolist()
        found.append((1 + keep, *of))
    return tuple(found)
