"""An estimator driven by hand over a trajectory, without a model or a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dicache_compile.rules import ANCHOR_STEP, ANCHOR_TIME, Estimator, FollowingEstimator, Seen, SlotSpec


def replay(
    estimator: Estimator,
    truth: Callable[[int], Tensor],
    deep: Iterable[int],
    steps: int,
    *,
    x: Callable[[int], Tensor] | None = None,
    h: Callable[[int], Tensor] | None = None,
    time: Callable[[int], float] = float,
) -> dict[int, Tensor]:
    """The estimates of the steps that are not `deep`. `truth`: y at each step; x is 0 and h is y where not given."""
    slots: dict[str, list[Tensor]] = {}
    told = {setting.name: torch.tensor(setting.value, dtype=torch.float32) for setting in estimator.settings()}
    wanted, found, anchors, since = set(deep), dict[int, Tensor](), 0, 0
    for step in range(steps):
        y = truth(step)
        at = x(step) if x is not None else torch.zeros_like(y)
        seen = Seen(
            x=at,
            h=h(step) if h is not None else y,
            state=_read(estimator.slots(), slots, y) | told,
            index=torch.tensor(step),
            time=torch.tensor(time(step), dtype=torch.float32),
            anchors=torch.tensor(anchors),
            since=torch.tensor(since),
        )
        seen = _with(seen, aid=estimator.aid(seen))
        if isinstance(estimator, FollowingEstimator):
            counted = estimator.follow(_with(seen, reused=torch.tensor(step not in wanted)))
            for name, value in counted.items():
                slots[name] = [value]
            seen = _with(seen, state=_read(estimator.slots(), slots, y) | told)
        if step not in wanted:
            found[step] = estimator.estimate(seen)
            since += 1
            continue
        new = estimator.anchor(_with(seen, y=y)) | {ANCHOR_TIME: seen.time, ANCHOR_STEP: seen.index}
        for spec in estimator.slots():
            slots[spec.name] = [new[spec.name], *slots.get(spec.name, [])][: max(spec.history, 1)]
        anchors, since = anchors + 1, 0
    return found


def _read(specs: tuple[SlotSpec, ...], slots: dict[str, list[Tensor]], like: Tensor) -> dict[str, Tensor]:
    """What was never written is not a number: an estimator must not let it through."""
    state: dict[str, Tensor] = {}
    for spec in specs:
        never = torch.full(() if spec.like == "number" else like.shape, torch.nan)
        held = slots.get(spec.name, [])
        state |= dict(zip(spec.reads, [*held, *[never] * (len(spec.reads) - len(held))], strict=True))
    return state


def _with(seen: Seen, **values: object) -> Seen:
    return Seen(**{name: getattr(seen, name) for name in Seen.__slots__} | values)
