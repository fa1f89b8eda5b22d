"""Fits published methods to a recording: each function is one method's calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import DiCacheConfig
from ..estimators import Reuse
from ..estimators.hyca import SOLVERS
from ..estimators.weights import three
from ..gates import PolynomialChange
from ..planning import by_magnitude, by_sum, cheapest
from .clusters import clusters as clustered
from .clusters import features
from .recording import Recording


def calibrate(recording: Recording, method: str, **parameters: Any) -> DiCacheConfig:
    """The config of a method, fitted to a recording.

    | method | parameters | what is fitted |
    |---|---|---|
    | "magcache" | threshold, max_skips, retention | the schedule, from the ratios of the residuals' sizes |
    | "teacache" | threshold, degree=4 | the polynomial, to the result's change; needs `looks_at="modulated"` |
    | "smoothcache" | threshold, most=3 | the schedule of one kind of sublayer; needs `sites="attention"`, say |
    | "dpcache" | deep | the steps of least error of the last residual |
    | "hyca" | clusters=2, interval=7, first=3 | the solver of each channel |
    | "cachequant" | deep_steps | a scale and a shift for each channel |
    | "ertacache" | threshold, first=1, last=1 | the schedule, then a scale and a shift for each step |

    Raises ValueError for an unknown method and a recording that has not what it needs.
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    return _METHODS[method](recording, **parameters)


def magnitudes(recording: Recording) -> list[float]:
    """Of each step the residual's size over that of the step before, by token, in the mean; 1 for the first."""
    sizes = recording.residuals.double().norm(dim=-1)
    ratios = (sizes[:, :, 1:] / sizes[:, :, :-1]).mean(dim=(0, 1, 3))
    return [1.0, *ratios.tolist()]


def changes(recording: Recording, name: str) -> list[float]:
    """Of each step the relative L1 change from the step before, in the mean of samples and calls; 0 for the first."""
    values = recording.tensors[name].double().flatten(3)
    moved = (values[:, :, 1:] - values[:, :, :-1]).abs().mean(-1) / values[:, :, :-1].abs().mean(-1)
    return [0.0, *moved.mean(dim=(0, 1)).tolist()]


def lags(recording: Recording, most: int = 3) -> list[list[float]]:
    """How far what a step gives is from what it gave so many steps before: as `planning.by_lag` takes it."""
    values = recording.residuals.double().flatten(3)
    found = []
    for lag in range(1, most + 1):
        off = (values[:, :, lag:] - values[:, :, :-lag]).abs().mean(-1) / values[:, :, lag:].abs().mean(-1)
        found.append(off.mean(dim=(0, 1)).tolist())
    return found


def _magcache(
    recording: Recording, threshold: float = 0.24, max_skips: int = 5, retention: float = 0.1
) -> DiCacheConfig:
    steps, ratios = recording.num_steps, magnitudes(recording)
    schedule = by_magnitude(ratios, steps, threshold=threshold, most=max_skips, retention=retention)
    return DiCacheConfig(schedule=schedule, estimator=Reuse(), num_steps=steps)


def _teacache(recording: Recording, threshold: float, degree: int = 4) -> DiCacheConfig:
    if recording.about["looks_at"] != "modulated":
        raise ValueError("teacache compares the first block's modulated input: record with looks_at='modulated'")
    moved, gave = (torch.tensor(changes(recording, name)[1:], dtype=torch.float64) for name in ("h", "result"))
    powers = torch.stack([moved**power for power in range(degree, -1, -1)], dim=1)
    # Of few steps a polynomial of a high degree is not determined: the least one counts.
    fitted = torch.linalg.lstsq(powers, gave[:, None], driver="gelsd").solution[:, 0]
    gate = PolynomialChange(tuple(fitted.tolist()), threshold)
    return DiCacheConfig(
        gate=gate,
        estimator=Reuse(),
        probe_depth=0,
        warmup_steps=1,
        final_steps=1,
        max_consecutive_skips=None,
        joint=False,
        num_steps=recording.num_steps,
    )


def _smoothcache(recording: Recording, threshold: float = 0.1, most: int = 3) -> DiCacheConfig:
    if recording.about["form"] != "value":
        raise ValueError("smoothcache reuses parts of blocks: record with sites='attention', or another part")
    return DiCacheConfig.preset(
        "smoothcache", errors={recording.about["sites"]: lags(recording, most)}, threshold=threshold
    )


def _dpcache(recording: Recording, deep: int, most: int | None = None) -> DiCacheConfig:
    residuals, steps = recording.residuals.double().flatten(3), recording.num_steps

    def cost(start: int, end: int) -> float:
        if end == start + 1:
            return 0.0
        off = (residuals[:, :, start + 1 : end] - residuals[:, :, start : start + 1]).abs().mean(-1)
        return float((off / residuals[:, :, start + 1 : end].abs().mean(-1)).sum(-1).mean())

    known = {(a, b): cost(a, b) for a in range(steps) for b in range(a + 1, steps + 1)}
    schedule = cheapest(lambda start, end: known[start, end], steps, deep, most=most)
    return DiCacheConfig.preset("dpcache", deep_steps=schedule.listed, num_steps=steps)


def _hyca(recording: Recording, clusters: int = 2, interval: int = 7, first: int = 3) -> DiCacheConfig:
    """Channels are clustered by how they move; each cluster has the solver with the least error one step ahead."""
    values = recording.residuals.double()  # [samples, calls, steps, R, C]
    rows = values.movedim(-1, 0).flatten(1, 2).movedim(2, 1).flatten(2)  # [C, steps, numbers]
    place = clustered(features(rows.movedim(1, 0).movedim(1, -1)), clusters)
    one = torch.tensor(1.0, dtype=torch.float64)
    names = list(SOLVERS)
    errors = torch.stack([
        sum((float(w) * rows[:, 2 - age : rows.shape[1] - 1 - age] for age, w in enumerate(
            three(one, [one, one], *SOLVERS[name](one, [one, one])))), torch.zeros(())
        ).sub(rows[:, 3:]).square().mean(dim=(1, 2))
        for name in names
    ])  # fmt: skip
    best = [int(errors[:, place == cluster].sum(-1).argmin()) for cluster in range(clusters)]
    solvers = tuple(dict.fromkeys(names[one] for one in best))
    of_channel = tuple(solvers.index(names[best[int(cluster)]]) for cluster in place)
    return DiCacheConfig.preset("hyca", of_channel=of_channel, solvers=solvers, interval=interval, first=first)


def _cachequant(recording: Recording, deep_steps: tuple[int, ...]) -> DiCacheConfig:
    anchor, now = _pairs(recording.residuals.double(), deep_steps)
    axes = tuple(range(anchor.dim() - 1))
    mean, of = anchor.mean(axes), now.mean(axes)
    spread = (anchor - mean).square().mean(axes)
    scale = ((anchor - mean) * (now - of)).mean(axes) / spread.clamp(min=1e-30)
    shift = of - scale * mean
    return DiCacheConfig.preset(
        "cachequant", deep_steps=deep_steps, scale=tuple(scale.tolist()), shift=tuple(shift.tolist())
    )


def _ertacache(recording: Recording, threshold: float, first: int = 1, last: int = 1) -> DiCacheConfig:
    schedule = by_sum(changes(recording, "result"), threshold, first=first, last=last)
    deep = schedule.deep_steps(recording.num_steps)
    x, residuals = recording.tensors["x"].double(), recording.residuals.double()
    scale, shift = [1.0] * recording.num_steps, [0.0] * recording.num_steps
    for step in set(range(recording.num_steps)) - set(deep):
        newest = max(one for one in deep if one < step)
        guess, truth = x[:, :, step] + residuals[:, :, newest], recording.tensors["y"][:, :, step].double()
        centred = guess - guess.mean()
        scale[step] = float((centred * truth).sum() / centred.square().sum())
        shift[step] = float(truth.mean() - scale[step] * guess.mean())
    return DiCacheConfig.preset(
        "ertacache", deep_steps=deep, scale=tuple(scale), shift=tuple(shift), num_steps=recording.num_steps
    )


def _pairs(residuals: Tensor, deep: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(the residual of the newest deep step, the step's own) of all reused steps."""
    reused = [step for step in range(residuals.shape[2]) if step not in deep]
    newest = [max(one for one in deep if one < step) for step in reused]
    return residuals[:, :, newest], residuals[:, :, reused]


_METHODS: dict[str, Callable[..., DiCacheConfig]] = {
    "cachequant": _cachequant,
    "dpcache": _dpcache,
    "ertacache": _ertacache,
    "hyca": _hyca,
    "magcache": _magcache,
    "smoothcache": _smoothcache,
    "teacache": _teacache,
}
