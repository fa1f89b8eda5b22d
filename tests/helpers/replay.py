"""A gate and an estimator driven by hand over a trajectory, without a model or a graph."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dicache_compile.rules import (
    ANCHOR_STEP,
    ANCHOR_TIME,
    Decider,
    Estimator,
    FollowingEstimator,
    Gate,
    KeepingEstimator,
    LearningGate,
    Seen,
    SlotSpec,
)

Trajectory = Callable[[int], Tensor]


@dataclass
class Replayed:
    """What was decided and estimated."""

    deep: list[int] = field(default_factory=list)
    estimates: dict[int, Tensor] = field(default_factory=dict)  # of the other steps
    compared: dict[int, float] = field(default_factory=dict)  # of the steps that the gate was asked

    def computed(self, steps: int) -> str:
        """One digit a step, 1 where it ran."""
        return "".join("1" if step in self.deep else "0" for step in range(steps))


def replay(
    estimator: Estimator,
    truth: Trajectory,
    deep: Container[int],
    steps: int,
    *,
    x: Trajectory | None = None,
    h: Trajectory | None = None,
    time: Callable[[int], float] = float,
) -> dict[int, Tensor]:
    """The estimates of the steps that are not `deep`. `truth`: y at each step; x is 0 and h is y where not given."""
    return run(None, estimator, truth, deep, steps, x=x, h=h, time=time).estimates


def run(
    gate: Gate | None,
    estimator: Estimator,
    truth: Trajectory,
    forced: Container[int],
    steps: int,
    *,
    x: Trajectory | None = None,
    h: Trajectory | None = None,
    time: Callable[[int], float] = float,
    found: Replayed | None = None,
) -> Replayed:
    """The same where a gate decides on the steps that are not `forced`; without one all of these are reused.

    `found` is filled as it goes, for a `truth` that depends on the estimates before it.
    """
    found, of_gate, of_estimator = found or Replayed(), _Slots(gate), _Slots(estimator)
    since = 0
    for step in range(steps):
        y = truth(step)
        at = x(step) if x is not None else torch.zeros_like(y)
        bare = Seen(
            x=at,
            h=h(step) if h is not None else y,
            state={},
            index=torch.tensor(step),
            time=torch.tensor(time(step), dtype=torch.float32),
            anchors=torch.tensor(len(found.deep)),
            since=torch.tensor(since),
        )
        reused = step not in forced
        if gate is not None:
            seen = replace(bare, state=of_gate.read(y))
            error = gate.measure(seen) if found.deep else torch.zeros(())
            seen = replace(seen, error=error, before=torch.tensor(False))
            within, compared = gate.judge(seen)
            if found.deep:
                found.compared[step] = compared.item()
            reused = reused and bool(within)
            seen = replace(seen, error=compared, reused=torch.tensor(reused))
            of_gate.write({**gate.follow(seen), **gate.settle(seen)})
        seen = replace(bare, state=of_estimator.read(y))
        seen = replace(seen, aid=estimator.aid(seen), reused=torch.tensor(reused))
        if isinstance(estimator, FollowingEstimator):
            of_estimator.write(estimator.follow(seen))
            seen = replace(seen, state=of_estimator.read(y))
        if reused:
            found.estimates[step] = estimator.estimate(seen)
            if isinstance(estimator, KeepingEstimator):
                of_estimator.write(estimator.keep(replace(seen, y=found.estimates[step])))
            since += 1
            continue
        anchor = estimator.anchor(replace(seen, y=y))
        of_estimator.write({**anchor, ANCHOR_TIME: seen.time, ANCHOR_STEP: seen.index})
        if isinstance(gate, LearningGate):
            of_gate.write(gate.learn(replace(bare, state=of_gate.read(y), y=y)))
        found.deep.append(step)
        since = 0
    return found


class _Slots:
    def __init__(self, of: Decider | Estimator | None) -> None:
        self._specs: tuple[SlotSpec, ...] = of.slots() if of is not None else ()
        settings = of.settings() if of is not None else ()
        self._told = {one.name: torch.tensor(one.value, dtype=torch.float32) for one in settings}
        self._held: dict[str, list[Tensor]] = {spec.name: [torch.zeros(())] for spec in self._specs if spec.shared}

    def read(self, like: Tensor) -> dict[str, Tensor]:
        """What was never written is not a number: it must not get through."""
        state: dict[str, Tensor] = {}
        for spec in self._specs:
            held = self._held.get(spec.name, [])
            never = torch.full(spec.shape if spec.like == "number" else like.shape, torch.nan)
            state |= dict(zip(spec.reads, [*held, *[never] * (len(spec.reads) - len(held))], strict=True))
        return state | self._told

    def write(self, new: dict[str, Tensor]) -> None:
        for spec in self._specs:
            if spec.name in new:
                kept = self._held.get(spec.name, []) if spec.history else []
                self._held[spec.name] = [new[spec.name], *kept][: max(spec.history, 1)]
