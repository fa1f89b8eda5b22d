"""Searches schedules and the weights for them together, over recorded generations.

A dynamic program over the steps: of all ways to come to a step with a number of deep ones, the few are kept that are
nearest to the recorded latents, one for each newest anchor. Each goes on in two ways, deep and reused, for which
weights are fitted. So one pass gives schedules for every number of deep steps. How near latents are is not how near
pictures are, which are clipped and decoded: who chooses among the ways looks at results.
Nothing is drawn at random: the same recording gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .fitting import Row, State, deep_step, reused_step
from .rehearsal import Rehearsal

LONGEST = 10  # reused steps in a row that are tried


@dataclass(frozen=True, slots=True)
class Way:
    """How the first steps of a generation are done, and where each recorded one is then."""

    deep: tuple[int, ...]
    rows: tuple[Row | None, ...]  # of each step; None: deep
    states: tuple[State, ...]
    error: float  # of the latents: the mean over the generations of 10 log10 of the mean squared error, dB


def search(
    rehearsal: Rehearsal, most: int, width: int = 4, tick: Callable[[], object] = lambda: None
) -> dict[int, tuple[Way, ...]]:
    """The best ways to do all steps with each number of deep ones up to `most`, the best first.

    `width`: how many are kept on the way of each number. `tick` is called once a step.
    """
    kept: dict[int, tuple[Way, ...]] = {0: (_start(rehearsal),)}
    with torch.no_grad():
        for step in range(rehearsal.num_steps):
            found: dict[int, list[Way]] = {}
            for count, ways in kept.items():
                for way in ways:
                    if count < most:
                        found.setdefault(count + 1, []).append(run_deep(rehearsal, step, way))
                    # One that may have no more deep steps goes on however long it is.
                    if way.deep and (step - way.deep[-1] <= LONGEST or count == most):
                        found.setdefault(count, []).append(reuse(rehearsal, step, way))
            kept = {count: _best(ways, width) for count, ways in found.items()}
            tick()
    return kept


def refit(rehearsal: Rehearsal, deep: Sequence[int], rows: Sequence[Row | None] = ()) -> Way:
    """One schedule gone through, with weights that are fitted; or with `rows`, to see what these give."""
    way = _start(rehearsal)
    with torch.no_grad():
        for step in range(rehearsal.num_steps):
            row = rows[step] if rows else None
            way = run_deep(rehearsal, step, way) if step in deep else reuse(rehearsal, step, way, row)
    return way


def _start(rehearsal: Rehearsal) -> Way:
    """Before the first step."""
    calls = len(rehearsal.takes[0].steps[0])
    states = tuple(State(take, rehearsal.latents(take, 0), ((),) * calls) for take in rehearsal.takes)
    return Way((), (), states, -torch.inf)


def run_deep(rehearsal: Rehearsal, step: int, way: Way) -> Way:
    done = [deep_step(rehearsal, step, state) for state in way.states]
    return Way(
        (*way.deep, step), (*way.rows, None), tuple(state for state, _ in done), _error([off for _, off in done])
    )


def reuse(rehearsal: Rehearsal, step: int, way: Way, row: Row | None = None) -> Way:
    done, found = reused_step(rehearsal, step, way.states, row)
    states, offs = tuple(state for state, _ in done), [off for _, off in done]
    return replace(way, rows=(*way.rows, found), states=states, error=_error(offs))


def _error(offs: Sequence[Tensor]) -> float:
    squares = torch.stack([off.double().square().mean() for off in offs])
    return float((10 * squares.clamp(min=1e-20).log10()).mean())


def _best(ways: Sequence[Way], width: int) -> tuple[Way, ...]:
    kept: dict[int, Way] = {}
    for way in sorted(ways, key=lambda way: (way.error, way.deep)):
        kept.setdefault(way.deep[-1], way)
    return tuple(list(kept.values())[:width])
