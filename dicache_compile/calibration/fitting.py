"""Fits one step's weights of a `LearnedTable`: so that the latents after it are the recorded ones.

What a step is fitted to decides how good a picture is. Its own true result is the wrong aim: the latents have drifted
by then, and an estimate that leads back is better than the exact one. So the aim is the recorded next latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rehearsal import Rehearsal
from .sums import MOST, Passed, Take, passed

RIDGE = 1e-3  # of each term's own size: what no data tells stays near the line through two anchors
ROUNDS = 2  # of Gauss and Newton: what comes after the trunk is not linear, but nearly
NUDGE = 0.02  # of y's size: the difference that a term's effect is read from
RESIDUALS, INPUTS = 4, 2  # anchors, and differences of x, that have weights


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a deep step leaves of one call, of each carried value."""

    step: int
    residuals: tuple[Tensor, ...]
    xs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class State:
    """One recorded generation, gone through again up to a step."""

    take: Take
    latents: Tensor  # that the step is given
    anchors: tuple[tuple[Anchor, ...], ...]  # of each call, the newest first
    before: tuple[Passed, ...] = ()  # the steps before it that a sampler may look back on, the newest first


@dataclass(frozen=True, slots=True)
class Row:
    """A step's weights, of `LearnedTable`."""

    residuals: tuple[float, ...]
    inputs: tuple[float, ...]


def deep_step(rehearsal: Rehearsal, step: int, state: State) -> tuple[State, Tensor]:
    """(the state after a step that runs deep, how far its latents are from the recorded ones)."""
    pieces, results, anchors = rehearsal.pieces, list[Tensor](), list[tuple[Anchor, ...]]()
    for call, held in enumerate(state.anchors):
        outputs, *ends = pieces.whole(*rehearsal.inputs(state.take, step, call, state.latents))
        xs, ys = _bases(rehearsal, ends), [y.float() for y in ends[-len(pieces.carried) :]]
        results.append(outputs[0])
        residuals = tuple(y - x for x, y in zip(xs, ys, strict=True))
        anchors.append((Anchor(step, residuals, tuple(xs)), *held)[:RESIDUALS])
    return _after(rehearsal, step, state, results, tuple(anchors))


def reused_step(
    rehearsal: Rehearsal, step: int, states: Sequence[State], row: Row | None = None
) -> tuple[list[tuple[State, Tensor]], Row]:
    """The same of a step that is reused, with a row of weights; None: with those that fit best. And the row."""
    problems = [_Problem(rehearsal, step, state) for state in states]
    line, shape = _line(step, states[0].anchors[0]), (clusters_of(rehearsal), len(problems[0].terms[0]))
    weights = torch.zeros(shape, dtype=torch.float64) if row is None else _terms_of(row, line, states[0], shape[0])
    for _ in range(ROUNDS if row is None and shape[1] else 0):
        weights = weights + _newton(problems, weights)
    found = _row_of(weights, line, states[0]) if row is None else row
    done = [_after(rehearsal, step, one.state, one.results(weights), one.state.anchors) for one in problems]
    return done, found


def clusters_of(rehearsal: Rehearsal) -> int:
    """How many clusters of channels have weights of their own."""
    return max(rehearsal.of_channel, default=0) + 1


class _Problem:
    """One generation's part in the fit of a step. Weights are [clusters, terms]."""

    def __init__(self, rehearsal: Rehearsal, step: int, state: State) -> None:
        self.state, self._rehearsal, self._step = state, rehearsal, step
        self._inputs = [rehearsal.inputs(state.take, step, call, state.latents) for call in range(len(state.anchors))]
        above = [_bases(rehearsal, rehearsal.pieces.above(*inputs)) for inputs in self._inputs]
        pairs = list(zip(above, state.anchors, strict=True))
        self._base = [_estimate(_line(step, held), held, xs) for xs, held in pairs]
        self.terms = [_terms(xs, held) for xs, held in pairs]

    def results(self, weights: Tensor) -> list[Tensor]:
        """What the model would give of each call."""
        return [self._below(call, ys) for call, ys in enumerate(self._estimates(weights))]

    def linear(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(how far the latents after the step are off, how that changes with each weight: [..., weights]), float64."""
        estimates = self._estimates(weights)
        results = [self._below(call, ys) for call, ys in enumerate(estimates)]
        off = self._rehearsal.off(self.state.take, self._step, _window(self.state, results))
        columns = []
        for cluster, term in itertools.product(*map(range, weights.shape)):
            total = torch.zeros_like(off)
            for call, ys in enumerate(estimates):
                directions = [self._of_cluster(one, cluster) for one in self.terms[call][term]]
                size = NUDGE * _size(ys) / _size(directions).clamp(min=1e-12)
                nudged = [y + size * direction for y, direction in zip(ys, directions, strict=True)]
                others = [torch.zeros_like(result) for result in results]
                others[call] = (self._below(call, nudged) - results[call]) / size
                alone = passed(torch.zeros_like(self.state.latents), others)
                total = total + self._rehearsal.moved(self._step, [alone])
            columns.append(total)
        return off.double().reshape(-1), torch.stack(columns, dim=-1).double().reshape(-1, weights.numel())

    def _estimates(self, weights: Tensor) -> list[list[Tensor]]:
        """Of each call the estimate of each carried value."""
        found = []
        for base, terms in zip(self._base, self.terms, strict=True):
            ys = list(base)
            for column, term in zip(weights.float().T, terms, strict=True):
                weight = self._by_channel(column, ys[0])
                ys = [y + weight * one for y, one in zip(ys, term, strict=True)]
            found.append(ys)
        return found

    def _by_channel(self, of_cluster: Tensor, like: Tensor) -> Tensor:
        """A number for each channel, of those for each cluster."""
        of_cluster = of_cluster.to(like.device)
        of_channel = self._rehearsal.of_channel
        return of_cluster[torch.tensor(of_channel, device=like.device)] if of_channel else of_cluster[0]

    def _of_cluster(self, value: Tensor, cluster: int) -> Tensor:
        """What a cluster has of a value, and 0 elsewhere."""
        if not self._rehearsal.of_channel:
            return value
        of_channel = torch.tensor(self._rehearsal.of_channel, device=value.device)
        return torch.where(of_channel == cluster, value, torch.zeros_like(value))

    def _below(self, call: int, ys: Sequence[Tensor]) -> Tensor:
        pieces = self._rehearsal.pieces
        given = [y.to(dtype) for y, dtype in zip(ys, pieces.y_dtypes, strict=True)]
        found: Tensor = pieces.below(*self._inputs[call], *given)[0]
        return found


def _newton(problems: Sequence[_Problem], weights: Tensor) -> Tensor:
    """The step of weights to the least sum of squared errors."""
    parts = [problem.linear(weights) for problem in problems]
    normal = torch.stack([j.T @ j for _, j in parts]).sum(0)
    right = torch.stack([j.T @ off for off, j in parts]).sum(0)
    ridge = RIDGE * normal.diagonal()
    damped = normal + torch.diag(ridge) + 1e-12 * torch.eye(weights.numel(), dtype=torch.float64)
    change: Tensor = torch.linalg.solve(damped, right + ridge * weights.flatten())
    return -change.reshape(weights.shape)


def _after(
    rehearsal: Rehearsal, step: int, state: State, results: Sequence[Tensor], anchors: tuple[tuple[Anchor, ...], ...]
) -> tuple[State, Tensor]:
    window = _window(state, results)
    off = rehearsal.off(state.take, step, window)
    last = step + 1 == rehearsal.num_steps
    latents = off if last else rehearsal.latents(state.take, step + 1) + off
    return State(state.take, latents, anchors, tuple(window[: MOST - 1])), off


def _window(state: State, results: Sequence[Tensor]) -> list[Passed]:
    """A step with these results, and those before it."""
    return [passed(state.latents, results), *state.before]


def _bases(rehearsal: Rehearsal, ends: Sequence[Tensor]) -> list[Tensor]:
    """What an estimate of each carried value is added to: x, or nothing where y is kept as it is."""
    pairs = zip(rehearsal.pieces.carried, ends, strict=False)
    return [x.float() if one.form == "residual" else torch.zeros_like(x, dtype=torch.float32) for one, x in pairs]


def _size(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.abs().mean() for value in values]).mean()


def _line(step: int, anchors: Sequence[Anchor]) -> list[float]:
    """The weights of the line through the last two anchors at a step."""
    if len(anchors) < 2:
        return [1.0]
    share = (step - anchors[0].step) / (anchors[0].step - anchors[1].step)
    return [1 + share, -share]


def _estimate(weights: Sequence[float], anchors: Sequence[Anchor], xs: Sequence[Tensor]) -> list[Tensor]:
    """Of each carried value."""
    found = list(xs)
    for weight, anchor in zip(weights, anchors, strict=False):
        found = [y + weight * residual for y, residual in zip(found, anchor.residuals, strict=True)]
    return found


def _terms(xs: Sequence[Tensor], anchors: Sequence[Anchor]) -> list[list[Tensor]]:
    """What weights are fitted of: differences of residuals, then of x, of which no sum is 0; of each carried value."""
    places = [xs, *(anchor.xs for anchor in anchors)][: INPUTS + 1]
    pairs = [(newer.residuals, older.residuals) for newer, older in itertools.pairwise(anchors)]
    return [
        [new - old for new, old in zip(newer, older, strict=True)]
        for newer, older in (*pairs, *itertools.pairwise(places))
    ]


def _row_of(weights: Tensor, line: Sequence[float], state: State) -> Row:
    """A table's row of the weights of differences, with those of the line."""
    count, residuals, rest = len(state.anchors[0]), list[float](), list[float]()
    for of_cluster in weights:
        of = [*line, *[0.0] * (RESIDUALS - len(line))]
        for place, weight in enumerate(of_cluster[: count - 1].tolist()):
            of[place] += weight
            of[place + 1] -= weight
        inputs = of_cluster[count - 1 :].tolist()
        residuals += of
        rest += [*inputs, *[0.0] * (INPUTS - len(inputs))]
    return Row(tuple(residuals), tuple(rest))


def _terms_of(row: Row, line: Sequence[float], state: State, clusters: int) -> Tensor:
    """The inverse."""
    count, found = len(state.anchors[0]), []
    whole = [*line, *[0.0] * (RESIDUALS - len(line))]
    for cluster in range(clusters):
        residuals = row.residuals[cluster * RESIDUALS : (cluster + 1) * RESIDUALS]
        of = [full - own for full, own in zip(residuals, whole, strict=True)]
        sums = [sum(of[: place + 1]) for place in range(count - 1)]
        found.append([*sums, *row.inputs[cluster * INPUTS :][: min(count, INPUTS)]])
    return torch.tensor(found, dtype=torch.float64)
