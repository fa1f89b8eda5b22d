"""How a sampler goes on from a step, read from recorded generations.

The next latents are a sum of what the sampler has: these latents and the model's results, and in a sampler that looks
back those of a few steps before. Noise that it adds is the same in two generations of one seed. So where the sum does
not hold in one of them, it is read from the difference of two, of which one had its results disturbed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .taps import Inputs

ALIKE = 1e-3  # of the latents' change: what a step may be off from a sum, besides the latents' own rounding
MOST = 4  # steps that a sum is of, this one among them: enough for multistep samplers of the third order
LARGEST = 16.0  # sum of the latents' factors in a sampler's step; of a fit to what is no sum they are many more
DISTURBED = 0.1  # of a result's size, by how much it is disturbed

Factors: TypeAlias = "tuple[float, ...]"
"""Of a step, the newest first: of each step's latents, then of each of its calls' results."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model in a recorded generation."""

    inputs: Inputs
    result: Tensor  # the first output, as the function got it


@dataclass(frozen=True, slots=True)
class Take:
    """One recorded generation."""

    seed: int
    steps: tuple[tuple[Call, ...], ...]  # of each the calls, such as those of guidance
    result: Any  # what the user's function returned


@dataclass(frozen=True, slots=True)
class Passed:
    """A step that was done: what it was given to denoise, and the results of its calls, float32 and of one shape."""

    latents: Tensor
    results: tuple[Tensor, ...]

    def minus(self, other: Passed) -> Passed:
        pairs = zip(self.results, other.results, strict=True)
        return Passed(self.latents - other.latents, tuple(one - another for one, another in pairs))

    def terms(self) -> Iterator[Tensor]:
        yield self.latents
        yield from self.results


def passed(latents: Tensor, results: Sequence[Tensor]) -> Passed:
    return Passed(latents, tuple(as_latents(result.float(), latents) for result in results))


def summed(factors: Factors, steps: Sequence[Passed]) -> Tensor:
    """The sum of steps, the newest first, with a step's factors."""
    terms = itertools.chain.from_iterable(step.terms() for step in steps)
    pairs = zip(factors, terms, strict=False)
    return sum((factor * term for factor, term in pairs), torch.zeros_like(steps[0].latents))


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


def disturbed(result: Tensor, step: int, call: int) -> Tensor:
    """A result with noise of its own, the same on each run and with no part in anybody's random numbers."""
    noise = torch.randn(result.shape, generator=torch.Generator().manual_seed(1000 * step + call)).to(result.device)
    return (result + DISTURBED * result.float().square().mean().sqrt() * noise).to(result.dtype)


@dataclass(frozen=True, slots=True)
class Course:
    """What a sampler's sums are read from: generations, or differences of two."""

    steps: tuple[tuple[Passed, ...], ...]  # of each generation
    ends: tuple[Tensor, ...]  # what the last step makes of each; none where the function does not return it
    sizes: tuple[tuple[Tensor, ...], ...]  # of each generation the latents of all steps, which were rounded
    eps: float  # of the latents' dtype

    def factors(self, step: int, depth: int) -> tuple[Factors, float, float]:
        """(factors of a step, how far its sums are off, what rounding explains), by least squares."""
        rows, targets, sizes = [], [], []
        for place, steps in enumerate(self.steps):
            window = [steps[step - age] for age in range(depth)]
            moved = window[0].results[0] != 0  # not what stands for conditions
            after = steps[step + 1].latents if step + 1 < len(steps) else self.ends[place]
            rows.append(torch.stack([term[moved] for one in window for term in one.terms()], dim=1))
            targets.append((after - window[0].latents)[moved])
            sizes.append(self.sizes[place][min(step + 1, len(steps) - 1)][moved])
        matrix, target = torch.cat(rows).double(), torch.cat(targets).double()
        solution = _least(matrix, target, self.eps)
        left = (matrix @ solution - target).norm() / target.norm()
        # The latents of earlier steps were rounded, too.
        kept = 1 + solution[:: len(solution) // depth][1:].abs().sum()
        rounding = kept * self.eps * torch.cat(sizes).double().norm() / target.norm()
        solution[0] += 1
        return tuple(solution.tolist()), float(left), float(rounding) if kept <= LARGEST else 0.0

    def knows(self, step: int, depth: int) -> bool:
        """Whether there are so many steps, and enough numbers to tell a sum from chance."""
        calls = len(self.steps[0][0].results)
        return depth <= step + 1 and 2 * depth * (1 + calls) < sum(one[step].latents.numel() for one in self.steps)


def _least(matrix: Tensor, target: Tensor, eps: float) -> Tensor:
    """The least solution: of latents that follow from earlier ones it does not matter which of both are taken."""
    sizes = matrix.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    # What differs by rounding alone is no term of its own: to fit that to the rest would explain anything.
    alike = min(eps**0.5, 0.02)
    given = (matrix / sizes).cpu(), target[:, None].cpu()
    found: Tensor = torch.linalg.lstsq(*given, rcond=alike, driver="gelsd").solution
    least: Tensor = (found[:, 0] / sizes.cpu()).to(matrix.device)
    return least


def read(course: Course, most: int) -> tuple[tuple[Factors, ...], str | None]:
    """(the factors of all steps, why not of more): each of as few steps as it needs, up to `most`."""
    found: list[Factors] = []
    for step in range(len(course.steps[0]) - (not course.ends)):
        depths = [depth for depth in range(1, most + 1) if depth == 1 or course.knows(step, depth)]
        for depth in depths:
            factors, left, rounding = course.factors(step, depth)
            if left <= ALIKE + rounding:
                found.append(factors)
                break
        else:
            why = f"is no sum of its latents and the model's results (off by {left:.1%})"
            return tuple(found), f"step {step} of the sampler {why}"
    return tuple(found), None
