"""Methods that look at a step before they decide on it, or at its result for the steps to come."""

from __future__ import annotations

from ..estimators import Checked, ProjectedDCTA, Reuse, Taylor
from ..gates import (
    DraftError,
    Motion,
    OutputRate,
    Planned,
    PolynomialChange,
    ProbeError,
    ResidualChange,
    SalientChange,
    SpectralChange,
)
from ..published import numbers_of
from .method import Fields, method

_OPEN: Fields = {"warmup_steps": 1, "max_consecutive_skips": None, "joint": False}


@method("fbcache", "FirstBlockCache (ParaAttention, diffusers)")
def fbcache(threshold: float = 0.05) -> Fields:
    """Reuses what the other blocks added while the first one's residual is near to that of the last deep step."""
    return {**_OPEN, "gate": ResidualChange(threshold, "<="), "estimator": Reuse("h")}


@method("dbcache", "DBCache (cache-dit)", "no accumulated limit, and no forecast but TaylorSeer's")
def dbcache(
    threshold: float = 0.08, first_blocks: int = 8, last_blocks: int = 0, warmup_steps: int = 8, order: int = 0
) -> Fields:
    """FirstBlockCache with `first_blocks` and `last_blocks` that run on every step.

    With `order` above 0 what the blocks between them added is forecast by TaylorSeer's series.
    """
    return {
        **_OPEN,
        "warmup_steps": warmup_steps,
        "probe_depth": first_blocks,
        "sites": (0, -last_blocks) if last_blocks else "trunk",
        "gate": ResidualChange(threshold),
        "estimator": Taylor(order, base="h") if order else Reuse("h"),
    }


@method(
    "teacache",
    "TeaCache, arXiv 2411.19108",
    "models whose polynomial reads the timestep alone, as Wan: `planning.by_sum` makes their schedule",
)
def teacache(model: str = "flux-dev", threshold: float | None = None) -> Fields:
    """A polynomial of the first block's modulated input's change, added up; the last residual.

    `model` is one of `published("teacache")`, whose coefficients are taken; without a `threshold` also its least.
    """
    numbers = numbers_of("teacache", model)
    if numbers["reads"] != "the first block's modulated input":
        raise ValueError(
            f"model={model!r}: its polynomial is of {numbers['reads']}, which says nothing of a picture. Make a "
            "schedule of that with planning.by_sum, and use it with estimator=Reuse()"
        )
    if threshold is None:
        if not numbers["thresholds"]:
            raise ValueError(f"model={model!r}: no threshold is published for it: set threshold=")
        threshold = numbers["thresholds"][0]
    return {
        **_OPEN,
        "warmup_steps": numbers["first"],
        "final_steps": numbers["last"],
        "probe_depth": 0,
        "gate": PolynomialChange(tuple(numbers["coefficients"]), threshold),
        "estimator": Reuse(),
    }


@method("easycache", "EasyCache, arXiv 2507.02860", "the calls of a step decide together, by the first one")
def easycache(threshold: float = 0.05, first: int = 10, last: int = 1) -> Fields:
    """How far the latents moved, times how much the result did for that last time; reuses the model's residual."""
    return {
        **_OPEN,
        "warmup_steps": first,
        "final_steps": last,
        "joint": True,
        "sites": "model",
        "carried": "residual",
        "probe_depth": 0,
        "gate": OutputRate(threshold),
        "estimator": Reuse(),
    }


@method("seacache", "SeaCache, arXiv 2602.18993", "filters what enters the trunk, where it filters the latents")
def seacache(
    grid: tuple[int, int, int],
    threshold: float = 0.25,
    sigma: float | tuple[float, ...] = 1000.0,
    order: int = 1,
    max_skips: int | None = 2,
) -> Fields:
    """How much of the input changes beneath its noise, added up; a line through the last two residuals.

    `grid` is (frames, rows, columns) of the tokens, `sigma` the timestep that is pure noise, or sigma for each step.
    """
    return {
        **_OPEN,
        "final_steps": 1,
        "max_consecutive_skips": max_skips,
        "probe_depth": 0,
        "gate": SpectralChange(threshold, grid, sigma),
        "estimator": Taylor(order),
    }


@method(
    "worldcache",
    "WorldCache, arXiv 2603.22286",
    "one gamma for all rows; its limit for high frequencies, its optical flow and its unconditional calls are left out",
)
def worldcache(
    threshold: float = 0.08,
    warmup_steps: int = 3,
    grid: tuple[int, int, int] | None = None,
    salience: float = 5.0,
    motion: float = 5.0,
    relax: float = 0.0,
    num_steps: int | None = None,
) -> Fields:
    """DiCache's gate, stricter where the input moves more, and a gamma with a sign: the projection of the probe's way.

    With a `grid`, (frames, rows, columns) of the tokens, salient places count more; with `relax=4` and `num_steps` the
    threshold rises to the end: see `gates.SalientChange`.
    """
    found: Fields = {
        **_OPEN,
        "warmup_steps": warmup_steps,
        "gate": SalientChange(threshold, grid, salience, motion, relax, num_steps),
        "estimator": ProjectedDCTA((0.2, 1.8)),
    }
    return found if num_steps is None else {**found, "num_steps": num_steps}


@method(
    "speca",
    "SpeCa, arXiv 2509.11628",
    "tries the draft on the first block of the step itself, where its code tries it on the last one and goes by that "
    "on the next step; forecasts the trunk's result",
)
def speca(
    threshold: float = 0.1,
    num_steps: int = 50,
    order: int = 2,
    decay: float = 0.01,
    floor: float = 0.01,
    least: int = 2,
    most: int = 5,
) -> Fields:
    """TaylorSeer's series as a draft, which holds while it is right on a block that is run for real.

    The threshold falls from step to step by `decay`, down to `floor`. After a deep step `least` and one more are reused
    in any case, and `most` at most, as its code counts. The first and the third step always run deep.
    """
    return {
        **_OPEN,
        "max_consecutive_skips": most,
        "deep_steps": (2,),
        "num_steps": num_steps,
        "gate": DraftError(threshold, num_steps, decay, floor, least + 1),
        "estimator": Checked(Taylor(order)),
    }


@method(
    "flowcache",
    "FlowCache, arXiv 2602.10825",
    "adds the blocks' last residual, as its code for SkyReels-V2 does, where that for MAGI-1 repeats the sampler's "
    "last step; its limits on kept keys and values are no cache of steps",
)
def flowcache(threshold: float = 0.01, warmup_steps: int = 5) -> Fields:
    """How much a chunk of frames has changed where it enters the blocks, added up for each chunk by itself.

    A chunk is a call with a name of its own (`stream("chunk 3")`), as in both published codes, or a row of a batch in
    which each has its own timestep. `warmup_steps` counts the steps of each chunk.
    """
    return {
        **_OPEN,
        "warmup_steps": warmup_steps,
        "probe_depth": 0,
        "gate": ProbeError(threshold),
        "estimator": Reuse(),
        "rows": "independent",
    }


@method(
    "adacache",
    "AdaCache, arXiv 2411.02397",
    "without `blocks` it measures the trunk's result, at less memory; with it all that one block adds, where the code "
    "measures its temporal attention",
)
def adacache(
    model: str = "open-sora-30-fast", blocks: int | None = None, monitored: int = 13, frame_tokens: int | None = None
) -> Fields:
    """After a deep step a codebook says how many may be reused, by how much the result changed for each step.

    `model` is one of `published("adacache")`, whose codebook is taken. With `blocks`, the number of the trunk's, what
    each of them adds is reused, and what the one with the number `monitored` adds decides, counted from 0. With
    `frame_tokens`, how many tokens a frame has, clips in which more moves have more deep steps: see `gates.Motion`.
    """
    numbers = numbers_of("adacache", model)
    (*pairs, (_, beyond)) = numbers["codebook"]
    plan = (*((bound, steps - 1) for bound, steps in pairs), (float("inf"), beyond - 1))
    motion = None if frame_tokens is None else Motion(frame_tokens, steps=tuple(numbers["motion_steps"]))
    found: Fields = {**_OPEN, "final_steps": 2, "probe_depth": 0, "estimator": Reuse()}
    if blocks is None:
        return {**found, "gate": Planned(plan, motion=motion)}
    if not 0 <= monitored < blocks:
        raise ValueError(f"monitored: expected the number of one of {blocks} blocks, from 0 on, got {monitored}")
    gate = Planned(plan, of=monitored, residual=True, motion=motion)
    return {**found, "sites": tuple((block, block + 1) for block in range(blocks)), "gate": gate}


@method("bwcache", "BWCache, arXiv 2509.13789", "without `blocks` it measures the trunk's result alone, at less memory")
def bwcache(
    threshold: float = 0.15, reused: int = 5, blocks: int | None = None, num_steps: int | None = None
) -> Fields:
    """While the result changes by less than the threshold from deep step to deep step, `reused` ones follow.

    With `blocks`, the number of the trunk's, the mean change of all blocks' results decides and these are reused, as
    published. With `num_steps` the last ones run deep: half as many as came before the first reused one.
    """
    gate = Planned(((threshold, reused),), per_step=False, of="first" if blocks is None else "all", half_of=num_steps)
    found: Fields = {**_OPEN, "probe_depth": 0, "gate": gate, "estimator": Reuse()}
    if blocks is not None:
        found |= {"sites": tuple((block, block + 1) for block in range(blocks)), "carried": "value"}
    return found if num_steps is None else {**found, "num_steps": num_steps}
