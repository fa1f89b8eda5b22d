"""Methods whose steps are known before a generation starts: from a table, or from a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from ..estimators import ChannelAffine, Extrapolated, GuidanceDifference, MeanVelocity, Reuse, StepAffine
from ..planning import by_lag, by_magnitude
from ..published import numbers_of
from ..schedules import Schedule
from ..site_rule import SiteRule
from .method import Fields, method


@method("magcache", "MagCache, arXiv 2506.09045", "both branches of guidance go by the conditional one's ratios")
def magcache(
    model: str = "flux-dev",
    num_steps: int = 28,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
) -> Fields:
    """Reuses while the residual's size, by calibrated ratios, is near to that of the last deep step.

    `model` is one of `published("magcache")`; what is None is taken from there.
    """
    numbers = numbers_of("magcache", model)
    never = numbers.get("never")
    always = [s for s in range(num_steps) if round(s * 27 / max(num_steps - 1, 1)) == never]
    schedule = by_magnitude(
        numbers["ratios"],
        num_steps,
        threshold=numbers["threshold"] if threshold is None else threshold,
        most=numbers["max_skips"] if max_skips is None else max_skips,
        retention=numbers["retention"] if retention is None else retention,
        always=always,
    )
    return {"schedule": schedule, "estimator": Reuse(), "num_steps": num_steps}


@method("smoothcache", "SmoothCache, arXiv 2411.10510")
def smoothcache(errors: dict[str, Sequence[Sequence[float]]], threshold: float = 0.1) -> Fields:
    """A schedule for each kind of sublayer, from a calibration: the longest lag whose error is small enough.

    `errors` has for "attention", "cross_attention" and "mlp", or some of them, what `planning.by_lag` takes;
    `calibrate(recording, "smoothcache")` gives it.
    """
    rows = [by_lag(of_kind, threshold) for of_kind in errors.values()]
    return {"sites": tuple(errors), "schedule": Schedule.table(*rows), "estimator": Reuse()}


@method(
    "pab",
    "Pyramid Attention Broadcast, arXiv 2408.12588",
    "no attention between frames of its own; the window is of steps, where it is of timesteps",
)
def pab(
    attention: int = 2,
    cross_attention: int | None = None,
    num_steps: int = 30,
    window: tuple[float, float] = (0.2, 0.9),
) -> Fields:
    """Every kind of attention runs on multiples of its range, within a window of the steps, in shares.

    Set a range for `cross_attention` where the blocks have one.
    """
    ranges = {"attention": attention, "cross_attention": cross_attention}
    kinds = {
        kind: _on_multiples(interval, window, num_steps) for kind, interval in ranges.items() if interval is not None
    }
    return {
        "sites": tuple(kinds),
        "schedule": Schedule.table(*kinds.values()),
        "estimator": Reuse(),
        "num_steps": num_steps,
    }


@method(
    "fastercache",
    "FasterCache, arXiv 2410.19355",
    "the windows are of steps, where they are of timesteps; a batch of both branches is computed in two halves",
)
def fastercache(
    interval: int = 2,
    num_steps: int = 30,
    window: tuple[float, float] = (0.319, 1.0),
    weight: float | tuple[float, ...] = 0.5,
    guidance: int | None = 5,
    guidance_window: tuple[float, float] = (0.359, 1.0),
    low: float = 1.1,
    high: float = 1.1,
    low_window: tuple[float, float] = (0.099, 0.901),
    high_window: tuple[float, float] = (0.699, 1.0),
    grid: tuple[int, int] | None = None,
) -> Fields:
    """Attentions run on multiples of `interval`, within a window of the steps, in shares; else the last change goes on.
    The unconditional call runs on multiples of `guidance`; else it is the conditional one's result and the last
    difference, whose bands grow by `low` and `high` within windows of theirs.

    The windows are the published ones of timesteps of 1000, where these fall evenly. For a pipeline that sends both
    branches as one batch set `guidance_batch` of `enable_cache`, for a model without guidance `guidance=None`. One that
    gives tokens needs their `grid` of (rows, columns).
    """
    attentions: Fields = {
        "sites": "attention",
        "schedule": _on_multiples(interval, window, num_steps),
        "estimator": Extrapolated(weight),
    }
    if guidance is None:
        return {**attentions, "num_steps": num_steps}
    grown = ((low, _within(low_window, num_steps)), (high, _within(high_window, num_steps)))
    factors = [tuple(factor if step in inside else 1.0 for step in range(num_steps)) for factor, inside in grown]
    unconditional = SiteRule(
        sites="model",
        schedule=_on_multiples(guidance, guidance_window, num_steps),
        estimator=GuidanceDifference(low=factors[0], high=factors[1], grid=grid),
    )
    return {"rules": (unconditional, SiteRule(**attentions)), "num_steps": num_steps}


@method("meancache", "MeanCache, arXiv 2601.19961", "each call of guidance apart, and no rescaling of their sum")
def meancache(deep_steps: tuple[int, ...], sigmas: tuple[float, ...], spans: int | tuple[int, ...] = 2) -> Fields:
    """The last velocity, corrected by the mean velocity over `spans` steps, on the sampler's sigmas.

    `sigmas` has one for each step and one more. Which steps and spans are best for a model the paper finds offline.
    """
    return {
        "schedule": Schedule.steps(*deep_steps),
        "estimator": MeanVelocity(sigmas, spans),
        "sites": "model",
        "carried": "residual",
        "probe_depth": 0,
        "num_steps": len(sigmas) - 1,
    }


@method("profilingdit", "ProfilingDiT, arXiv 2504.03140")
def profilingdit(ranges: tuple[tuple[int, int], ...], deep_steps: tuple[int, ...], before: int = 0) -> Fields:
    """Ranges of blocks, each with the last residual of its own; the other blocks run on every step.

    `ranges` as in `sites`, so (4, 8) is blocks 4 to 7. `before` is how many blocks stand before the list that they
    count in: the published ranges of HunyuanVideo count its single blocks, and 20 double blocks come first.
    """
    sites = tuple((first + before, last + before) for first, last in ranges)
    return {"sites": sites, "schedule": Schedule.steps(*deep_steps), "estimator": Reuse()}


@method("ertacache", "ERTACache, arXiv 2508.21091", "the sampler's steps stay as they are")
def ertacache(deep_steps: tuple[int, ...], scale: tuple[float, ...], shift: tuple[float, ...]) -> Fields:
    """The last result, scaled and shifted for each step, by `calibrate(recording, "ertacache")`."""
    return {"schedule": Schedule.steps(*deep_steps), "estimator": StepAffine(scale, shift)}


@method("cachequant", "CacheQuant, arXiv 2503.01323", "its cache and its correction; quantisation is torchao's")
def cachequant(deep_steps: tuple[int, ...], scale: tuple[float, ...], shift: tuple[float, ...]) -> Fields:
    """The last residual with a scale and a shift for each channel; `calibrate(recording, "cachequant")` finds all."""
    return {"schedule": Schedule.steps(*deep_steps), "estimator": ChannelAffine(scale, shift)}


@method("dpcache", "DPCache, arXiv 2602.22654; CEM, arXiv 2512.23258; BudCache, arXiv 2606.13496", "the costs are ours")
def dpcache(deep_steps: tuple[int, ...]) -> Fields:
    """The steps of least recorded error: `calibrate(recording, "dpcache", deep=10)` finds them."""
    return {"schedule": Schedule.steps(*deep_steps), "estimator": Reuse()}


@method("learning-to-cache", "Learning-to-Cache, arXiv 2406.01733; HarmoniCa, arXiv 2410.01723", "tables, no training")
def learning_to_cache(routers: Sequence[Sequence[Sequence[bool | int]]]) -> Fields:
    """A table that a router was trained to: `routers[step][block]` has whether (attention, MLP) run."""
    blocks = len(routers[0])
    sites, rows = [], []
    for block in range(blocks):
        for part, kind in enumerate(("attention", "mlp")):
            mask = [bool(step[block][part]) for step in routers]
            if not all(mask):
                sites.append((kind, block, block + 1))
                rows.append(Schedule.mask(mask))
    if not sites:
        raise ValueError("routers: every part of every block runs on every step: nothing is reused")
    return {"sites": tuple(sites), "schedule": Schedule.table(*rows), "estimator": Reuse()}


def _on_multiples(interval: int, window: tuple[float, float], num_steps: int) -> Schedule:
    """Deep on multiples of an interval, and outside of a window of the steps, in shares."""
    inside = _within(window, num_steps)
    return Schedule.mask([step not in inside or step % interval == 0 for step in range(num_steps)])


def _within(window: tuple[float, float], num_steps: int) -> range:
    """The steps whose share of a generation lies between both numbers, neither of them included."""
    first, beyond = (round(share * num_steps, 9) for share in window)
    return range(floor(first) + 1, ceil(beyond))
